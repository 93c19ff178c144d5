"""The banana data set of d2l.ai, and generated pictures in the same layout."""
