"""Who may import whom."""

TABLE = """
common
strengths    common
realign
rules        common strengths realign
models       common
devices      common models
policies     common strengths realign models devices
data         common strengths models devices policies
decoding     common strengths realign rules models devices policies data
results      common strengths
rewards      common models devices policies data decoding results
sweeps       common strengths realign rules models devices policies data decoding results rewards
analysis     common strengths results rewards
scoring      common strengths realign models devices policies data decoding results analysis
training     common realign models devices policies data decoding rewards analysis scoring
search       common strengths realign rules models devices policies data decoding rewards
exact        common strengths realign rules models devices policies data decoding rewards search
experiments  common strengths
serving      common strengths realign rules models devices policies data decoding scoring
performance  common strengths realign rules models devices policies data decoding rewards scoring training search exact
"""
"""What stands at the door of `dera_jax`, and what each imports besides its own files: only lines above its own."""
