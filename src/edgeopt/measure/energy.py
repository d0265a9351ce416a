from dataclasses import dataclass


@dataclass
class E:
    joules: float | None = None
    reason: str = "stand-in"


class EnergyMeter:
    def begin(self):
        return self

    def end(self):
        return E()
