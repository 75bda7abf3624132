"""The embedded world: coloured, textured, sized and counted objects, rendered and described from a seed.

Nothing is downloaded and nothing is random beyond the seed: a scene is a value, its picture and its caption
are functions of it. `pipeline.datasets.shapes` extracts it, `eval.benchmarks.shapes` judges with it.
"""
