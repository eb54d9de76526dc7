"""What an experiment made, in the formats of others: a CycloneDX model card, a Croissant record of its sets."""
