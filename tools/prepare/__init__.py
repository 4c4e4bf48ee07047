"""From the data sets as they are downloaded to what the configs read."""
