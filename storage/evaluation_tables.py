"""The tables of m008_evaluate: benchmarks' items, models' answers, grades. Landed statements never change."""

STATEMENTS = [
    # fingerprint: of the items as they are asked, so that two evaluations that share it asked the same.
    """CREATE TABLE item_sets (
        id INTEGER PRIMARY KEY,
        benchmark TEXT NOT NULL,
        fingerprint TEXT NOT NULL UNIQUE,
        created_at TEXT NOT NULL
    )""",
    # item: {"id", "messages", "following", "categories", "reference", "temperature", "extra"}
    """CREATE TABLE items (
        set_id INTEGER NOT NULL REFERENCES item_sets(id) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        name TEXT NOT NULL,
        item TEXT NOT NULL,
        PRIMARY KEY (set_id, number),
        UNIQUE (set_id, name)
    ) WITHOUT ROWID""",
    # job_id NULL: an official file brought the grades. settings: how answers were drawn, {"purpose", "file"}.
    """CREATE TABLE evaluations (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        job_id INTEGER UNIQUE REFERENCES jobs(id),
        benchmark TEXT NOT NULL,
        set_id INTEGER REFERENCES item_sets(id),
        model TEXT NOT NULL,
        adapter_id INTEGER,
        label TEXT NOT NULL,
        settings TEXT NOT NULL,
        user TEXT NOT NULL REFERENCES users(name),
        created_at TEXT NOT NULL,
        deleted_at TEXT
    )""",
    "CREATE INDEX evaluations_by_benchmark ON evaluations (benchmark, deleted_at)",
    """CREATE TABLE item_answers (
        evaluation_id INTEGER NOT NULL REFERENCES evaluations(id) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        turn INTEGER NOT NULL,
        text TEXT NOT NULL,
        finish TEXT,
        tokens INTEGER,
        PRIMARY KEY (evaluation_id, number, turn)
    ) WITHOUT ROWID""",
    # grader: "rules", a judge's name with its version, or the name of an official file.
    """CREATE TABLE gradings (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        evaluation_id INTEGER NOT NULL REFERENCES evaluations(id) ON DELETE CASCADE,
        job_id INTEGER REFERENCES jobs(id),
        grader TEXT NOT NULL,
        cost REAL NOT NULL DEFAULT 0.0,
        created_at TEXT NOT NULL,
        UNIQUE (evaluation_id, grader, job_id)
    )""",
    # sums NULL: a failure, and why.
    """CREATE TABLE grades (
        grading_id INTEGER NOT NULL REFERENCES gradings(id) ON DELETE CASCADE,
        place INTEGER NOT NULL,
        item TEXT NOT NULL,
        sums TEXT,
        categories TEXT NOT NULL,
        characters INTEGER,
        unit TEXT NOT NULL,
        why TEXT NOT NULL,
        PRIMARY KEY (grading_id, place)
    ) WITHOUT ROWID""",
    # What a judge said, by the request's name within its evaluation.
    """CREATE TABLE grade_replies (
        grading_id INTEGER NOT NULL REFERENCES gradings(id) ON DELETE CASCADE,
        request TEXT NOT NULL,
        item TEXT NOT NULL,
        reply TEXT NOT NULL,
        PRIMARY KEY (grading_id, request)
    ) WITHOUT ROWID""",
]
