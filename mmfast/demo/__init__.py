"""The main job, end to end: train a joint image–text space, search it, score it, and write a report.

Everything here needs the extra ``mmfast[demo]`` and is imported by the command line alone.
"""
