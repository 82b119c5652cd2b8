"""What a person would write without a simulator: one loop over devices, one over time."""

import math
import random


def temperature_sensors(devices, ticks, interval_s=5.0, seed=1):
    """Readings of the temperature_sensor profile, plainly; returns a list of dicts."""
    rng = random.Random(seed)
    rows = []
    for i in range(devices):
        device_id, humidity, battery = f"temperature_sensor-{i:04d}", 55.0, 100.0
        for n in range(ticks):
            at_s = n * interval_s
            hour = at_s / 3600 % 24
            temperature = 22 + 5 * math.cos((hour - 14) / 24 * 2 * math.pi) + rng.gauss(0, 0.3)
            humidity += 0.1 * (55 - humidity) * interval_s + 0.5 * math.sqrt(
                interval_s) * rng.gauss(0, 1)
            humidity = min(95.0, max(20.0, humidity))
            battery = max(0.0, battery - 0.001 * interval_s)
            rows.append({
                "device_id": device_id, "time": at_s, "seq": n,
                "temperature": round(temperature, 2), "humidity": round(humidity, 1),
                "battery": round(battery, 3),
            })
    return rows
