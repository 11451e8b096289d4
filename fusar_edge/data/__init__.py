"""Triplet manifests, task prompts and answers, dataset converters, the scene simulator."""
