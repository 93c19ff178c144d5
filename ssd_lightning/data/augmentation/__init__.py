"""Random changes of training pictures: geometry, colours, and the pipeline that applies both."""
