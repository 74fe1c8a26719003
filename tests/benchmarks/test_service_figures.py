"""What is counted of the service: every request and every loss once."""

from benchmarks import fuzzing, retraining, service_faults


def test_requests_of_all_parts_are_counted_by_what_was_asked() -> None:
    parts = [
        {"statuses": {"GET /a": {"200": 2, "404": 1}}, "failed": []},
        {"statuses": {"GET /a": {"503": 1}, "POST /b": {"none": 1}}, "failed": ["GET /a: curl: x"]},
    ]
    table = fuzzing.table([{"parts": parts}])
    assert table.rows == [
        ["`GET /a`", 4, 2, 1, 1, 1],
        ["`POST /b`", 1, 0, 0, 0, 0],
        ["**all**", 5, 2, 1, 1, 1],
    ]


def test_what_was_killed_stands_first_and_what_no_sink_got_is_added_up() -> None:
    def found(row: str, **changes: object) -> dict[str, object]:
        none = dict.fromkeys(("folder", "webhook", "MQTT"), 0)
        counts = dict.fromkeys(("answered", "files", "lost", "files_twice", "images"), 0)
        return {"row": row, "times": 3, "undelivered": none, "twice": none, **counts, **changes}

    missing = {"folder": 1, "webhook": 2, "MQTT": 0}
    table = service_faults.table([found("disk full", undelivered=missing), found("kill -9")])
    assert [row[0] for row in table.rows] == ["kill -9", "disk full"]
    assert table.rows[1][table.columns.index("not delivered")] == 3


def test_the_slowest_of_a_hundred_answers_is_compared() -> None:
    alone, beside = (retraining.summary([n * ms / 1e3 for n in range(100)]) for ms in (1.0, 1.5))
    found = {"preset": "fast", "engine": "x", "seconds": 9.0, "alone": alone, "beside": beside}
    table = retraining.table([found])
    assert [round(cell, 3) for cell in table.rows[0][2:]] == [100, 50, 75, 99, 148.5, 1.5]
