"""What run_all.sh calls; notebooks import nothing from here."""
