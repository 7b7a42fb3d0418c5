"""The loops: collecting, training, evaluating, exporting, comparing. No algorithm is named here."""
