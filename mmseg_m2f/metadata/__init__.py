"""Class names, colours, things and category ids of the data sets: plain Python, no framework."""
