"""Time the embeddings of a pretrained speech encoder: batches of clips of similar length against one clip at a time.

The same network, the same clips, every layer pooled in one pass. Speed does not depend on what the weights are, so without
``--encoder`` it is a network of the size of wav2vec 2.0 base with random ones. Batches in the order of the corpus show what
sorting by length is worth. Decoding is not in it, nor is what is stored.
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
        encoder = wav2vec2.SpeechEncoder(options.encoder or base_size(folder)).eval().to(device)
    half = device.type == "cuda"

    def passing(batches):
        return lambda: [wav2vec2.pooled(encoder, [clips[i] for i in batch], half) for batch in batches]

    by_length, alone = wav2vec2.by_length([len(clip) for clip in clips]), [[i] for i in range(len(clips))]
    size = max(map(len, by_length))
    in_order = [range(i, min(i + size, len(clips))) for i in range(0, len(clips), size)]
    seconds = timing.in_turns({f"by length, on {device}": passing(by_length), "in the corpus's order": passing(in_order),
                               "one clip at a time": passing(alone)}, options.repeats)
    sys.exit(not timing.report(seconds, rows, {"one clip at a time": REQUIRED}))


if __name__ == "__main__":
    main()
