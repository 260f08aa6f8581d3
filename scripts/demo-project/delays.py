"""Mean departure delay for each hour of the day, over one slice of the flights.

The payload names the slice (row_start, row_count). The result has, for each hour, the mean delay in minutes and the number
of flights it stands for, so that the job can average the slices by weight.
"""
import json
import os

with open(os.environ["COMPUTALOT_TASK_PAYLOAD"]) as file:
    payload = json.load(file)
with open("flights.json") as file:
    flights = json.load(file)

first, count = payload["row_start"], payload["row_count"]
total = [0.0] * 24
number = [0] * 24
for done, flight in enumerate(flights[first : first + count]):
    hour = int(flight["time"]) % 24
    total[hour] += flight["delay"]
    number[hour] += 1
    if done % 4000 == 0:
        print("COMPUTALOT_PROGRESS:" + json.dumps({"percent": round(100 * done / count)}), flush=True)

result = {"flights": sum(number)}
for hour in range(24):
    result[f"delay_{hour:02}"] = total[hour] / number[hour] if number[hour] else 0.0
    result[f"flights_{hour:02}"] = number[hour]
print(f"{sum(number)} flights from row {first}")
with open(os.environ["COMPUTALOT_TASK_RESULT"], "w") as file:
    json.dump(result, file)
