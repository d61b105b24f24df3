"""Models trained on the spot from data that is already on the machine.

`python -m sample_models NAME` prints the directory that holds `model/` and `data/`.
"""

SAMPLES = ("code_lm", "docstring_classifier", "digits")
