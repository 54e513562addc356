"""The parts that tests and benchmarks share: tiny models, data, oracles, and parts of the platform, really served.

It imports neither tests nor benchmarks, nothing in the platform imports it, and no wheel has it.
"""
