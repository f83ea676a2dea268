"""For every test: a slow machine fails none, so hypothesis keeps no deadline."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "flare", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("flare")
