"""The documents' claims, one a file; ``zoo.study.catalog`` lists them."""
