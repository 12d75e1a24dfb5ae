"""Training of the two demo vision models. Not part of the package."""
