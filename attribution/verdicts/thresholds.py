"""The numbers that turn measurements into verdicts: versioned data, so that a verdict traces to them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Uncalibrated defaults until reviews say better; ``Verdict.confidence`` stays None with these."""

    version: str = "default-1"
    tau_nats: float = 1.0  # a span is used from this reliance on: the documents make it e times likelier
    sigmas: float = 3.0  # nearer to tau than so many noise sigmas nothing is decided
    least_noise_nats: float = 0.01  # one sigma is never taken to be smaller
    sure_without: float = 0.9  # mean probability without chunks above which reliance cannot be measured
    used_part: float = 0.15  # a chunk was used from this part of the positive shares on

    def noise(self, measured_nats: float) -> float:
        """One sigma, nats."""
        return max(measured_nats, self.least_noise_nats)


DEFAULT = Thresholds()
