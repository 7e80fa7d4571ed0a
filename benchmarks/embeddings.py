"""Time the embeddings of a pretrained speech encoder: batches of clips of similar length against one clip at a time.

The same network, the same clips, every layer pooled in one pass. Speed does not depend on what the weights are, so without
``--encoder`` it is a network of the size of wav2vec 2.0 base with random ones. What is required is measured on the whole road
as ``wav2vec2.embeddings`` goes it, in half precision where the device computes in it, against float32 and one clip at a time,
as a loop over a folder does it. The lines between say what each part of that is worth: on a CPU one clip keeps a few cores
busy, so sharing batches gains little there. Decoding is not in it, nor is what is stored.
"""

import sys
import tempfile

import timing
import transformers

from helpers import audio, training, wav2vec2

REQUIRED = 1.5


def base_size(folder: str) -> str:
    """Write a network of the size of wav2vec 2.0 base, with random weights."""
    transformers.Wav2Vec2Model(transformers.Wav2Vec2Config()).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
    return folder


def main() -> None:
    options = timing.parser(__doc__.splitlines()[0], clips=48)
    options.add_argument("--encoder", default="", help="name or folder of pretrained weights")
    options.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    options = options.parse_args()
    rows = timing.read_clips(options.corpus, options.clips)
    clips = [(audio.load(path) * 32767).astype("int16") for path in rows["path"]]
    device = training.find_device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        name = options.encoder or base_size(folder)
        encoders = {
            "float32": wav2vec2.SpeechEncoder(name).eval().to(device),
            "half precision": wav2vec2.SpeechEncoder(name).eval().to(device).halve(),
        }
    if encoders["half precision"].precision == encoders["float32"].precision:
        del encoders["half precision"]  # nothing to gain on this device

    by_length = wav2vec2.by_length(
        [*map(encoders["float32"].n_read, clips)], wav2vec2.BATCH_S[device.type]
    )
    roads = {"by length": by_length, "one clip at a time": [[i] for i in range(len(clips))]}
    runs = {
        f"{road}, {precision}": lambda batches=batches, encoder=encoder: [
            wav2vec2.pooled(encoder, [clips[i] for i in batch]) for batch in batches
        ]
        for precision, encoder in reversed(encoders.items())
        for road, batches in roads.items()
    }
    seconds = timing.in_turns(runs, options.repeats)
    sys.exit(not timing.report(seconds, rows, {"one clip at a time, float32": REQUIRED}))


if __name__ == "__main__":
    main()
