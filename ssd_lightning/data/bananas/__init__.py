"""The banana data set of d2l.ai and a generated replacement in the same layout."""
