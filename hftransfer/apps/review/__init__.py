"""The label loop: rows of a finished run that deserve a second look, one at a time, and a patch file of what was decided."""
