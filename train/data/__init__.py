"""Labelled images from folders, Parquet files, tar shards and the Hub, and the order they are trained in."""
