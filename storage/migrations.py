"""The schema, as steps that are only ever appended. A database of any earlier landed version opens."""

from __future__ import annotations

from sqlite_utils import Database, Migrations

from storage import evaluation_tables

migrations = Migrations("plumb")

_METRIC_COLUMNS = ",\n        ".join(
    f"{metric} INTEGER CHECK ({metric} BETWEEN 0 AND 4)"
    for metric in ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
)

# One statement a list item: executescript would commit the migration's transaction.
_TABLES = [
    """CREATE TABLE users (
        name TEXT PRIMARY KEY,
        created_at TEXT NOT NULL
    )""",
    """CREATE TABLE images (
        sha256 TEXT PRIMARY KEY,
        extension TEXT NOT NULL,
        width INTEGER NOT NULL,
        height INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        created_at TEXT NOT NULL
    )""",
    # messages: a chat whose last turn is the user's; image parts name a sha256.
    """CREATE TABLE samples (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        source TEXT NOT NULL,
        source_id TEXT NOT NULL,
        split TEXT,
        messages TEXT NOT NULL,
        question TEXT NOT NULL,
        reference TEXT,
        created_at TEXT NOT NULL,
        UNIQUE (source, source_id)
    )""",
    """CREATE TABLE sample_images (
        sample_id INTEGER NOT NULL REFERENCES samples(id) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        sha256 TEXT NOT NULL REFERENCES images(sha256),
        PRIMARY KEY (sample_id, position)
    ) WITHOUT ROWID""",
    "CREATE INDEX sample_images_by_image ON sample_images (sha256)",
    """CREATE TABLE datasets (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        hash TEXT NOT NULL,
        rule TEXT NOT NULL,
        counts TEXT NOT NULL,
        user TEXT NOT NULL REFERENCES users(name),
        created_at TEXT NOT NULL
    )""",
    """CREATE TABLE jobs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL,
        status TEXT NOT NULL,
        config TEXT NOT NULL,
        slot_kind TEXT NOT NULL CHECK (slot_kind IN ('device', 'network')),
        device TEXT,
        slot TEXT,
        user TEXT NOT NULL REFERENCES users(name),
        dataset_id INTEGER REFERENCES datasets(id),
        adapter_id INTEGER REFERENCES adapters(id),
        phase TEXT NOT NULL DEFAULT '',
        done REAL NOT NULL DEFAULT 0,
        total REAL NOT NULL DEFAULT 0,
        unit TEXT NOT NULL DEFAULT '',
        port INTEGER,
        reason TEXT NOT NULL DEFAULT '',
        created_at TEXT NOT NULL,
        started_at TEXT,
        ended_at TEXT
    )""",
    "CREATE INDEX jobs_by_status ON jobs (status, id)",
    # event_offset: how many bytes of events.jsonl are in this database already.
    """CREATE TABLE attempts (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        job_id INTEGER NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        pid INTEGER,
        pid_started REAL,
        process_group INTEGER,
        event_offset INTEGER NOT NULL DEFAULT 0,
        heard_at REAL,
        outcome TEXT,
        reason TEXT NOT NULL DEFAULT '',
        started_at TEXT NOT NULL,
        ended_at TEXT,
        UNIQUE (job_id, number)
    )""",
    """CREATE TABLE metrics (
        attempt_id INTEGER NOT NULL REFERENCES attempts(id) ON DELETE CASCADE,
        step INTEGER NOT NULL,
        name TEXT NOT NULL,
        value REAL NOT NULL,
        PRIMARY KEY (attempt_id, name, step)
    ) WITHOUT ROWID""",
    """CREATE TABLE adapters (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        base_model TEXT NOT NULL,
        method TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        job_id INTEGER NOT NULL REFERENCES jobs(id),
        dataset_id INTEGER REFERENCES datasets(id),
        created_at TEXT NOT NULL,
        UNIQUE (job_id, sha256)
    )""",
    # author: the person who wrote it; job_id, model, adapter_id: the machine that did.
    """CREATE TABLE candidates (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        sample_id INTEGER NOT NULL REFERENCES samples(id) ON DELETE CASCADE,
        text TEXT NOT NULL,
        model TEXT,
        adapter_id INTEGER REFERENCES adapters(id),
        job_id INTEGER REFERENCES jobs(id),
        number INTEGER,
        author TEXT REFERENCES users(name),
        parent_id INTEGER REFERENCES candidates(id),
        settings TEXT NOT NULL DEFAULT '{}',
        tokens INTEGER,
        finish TEXT,
        created_at TEXT NOT NULL,
        UNIQUE (job_id, sample_id, number)
    )""",
    "CREATE INDEX candidates_by_sample ON candidates (sample_id, id)",
    """CREATE TABLE raters (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL CHECK (kind IN ('person', 'judge')),
        name TEXT NOT NULL,
        version TEXT NOT NULL DEFAULT '',
        mode TEXT NOT NULL DEFAULT '',
        UNIQUE (kind, name, version, mode)
    )""",
    """CREATE TABLE judgements (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        rater_id INTEGER NOT NULL REFERENCES raters(id),
        sample_id INTEGER NOT NULL REFERENCES samples(id) ON DELETE CASCADE,
        job_id INTEGER REFERENCES jobs(id),
        state TEXT NOT NULL CHECK (state IN ('ok', 'blocked', 'truncated', 'unparseable', 'failed')),
        raw TEXT NOT NULL DEFAULT '',
        reason TEXT NOT NULL DEFAULT '',
        tokens_in INTEGER NOT NULL DEFAULT 0,
        tokens_out INTEGER NOT NULL DEFAULT 0,
        cost REAL NOT NULL DEFAULT 0,
        created_at TEXT NOT NULL,
        UNIQUE (job_id, sample_id, rater_id)
    )""",
    "CREATE INDEX judgements_by_sample ON judgements (sample_id, rater_id, id)",
    f"""CREATE TABLE scores (
        judgement_id INTEGER NOT NULL REFERENCES judgements(id) ON DELETE CASCADE,
        candidate_id INTEGER NOT NULL REFERENCES candidates(id) ON DELETE CASCADE,
        {_METRIC_COLUMNS},
        PRIMARY KEY (judgement_id, candidate_id)
    ) WITHOUT ROWID""",
    "CREATE INDEX scores_by_candidate ON scores (candidate_id)",
    """CREATE TABLE pairs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        sample_id INTEGER NOT NULL REFERENCES samples(id) ON DELETE CASCADE,
        chosen_id INTEGER NOT NULL REFERENCES candidates(id),
        rejected_id INTEGER NOT NULL REFERENCES candidates(id),
        origin TEXT NOT NULL CHECK (origin IN ('rule', 'hand', 'vote')),
        rule TEXT,
        chosen_quality REAL,
        rejected_quality REAL,
        status TEXT NOT NULL CHECK (status IN ('proposed', 'accepted', 'rejected')),
        user TEXT NOT NULL REFERENCES users(name),
        created_at TEXT NOT NULL,
        CHECK (chosen_id <> rejected_id),
        UNIQUE (sample_id, chosen_id, rejected_id)
    )""",
    "CREATE INDEX pairs_by_status ON pairs (status, id)",
    # pair_judgements: which judgements a pair stands on (the arrow from labels to pairs).
    """CREATE TABLE pair_judgements (
        pair_id INTEGER NOT NULL REFERENCES pairs(id) ON DELETE CASCADE,
        judgement_id INTEGER NOT NULL REFERENCES judgements(id),
        PRIMARY KEY (pair_id, judgement_id)
    ) WITHOUT ROWID""",
    # row: the frozen content; it stays as it is when the live tables change.
    """CREATE TABLE dataset_rows (
        dataset_id INTEGER NOT NULL REFERENCES datasets(id) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        split TEXT NOT NULL CHECK (split IN ('train', 'heldout')),
        sample_id INTEGER NOT NULL REFERENCES samples(id),
        pair_id INTEGER REFERENCES pairs(id),
        row TEXT NOT NULL,
        PRIMARY KEY (dataset_id, position)
    ) WITHOUT ROWID""",
    "CREATE INDEX dataset_rows_by_pair ON dataset_rows (pair_id)",
    """CREATE TABLE conversations (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        user TEXT NOT NULL REFERENCES users(name),
        title TEXT NOT NULL DEFAULT '',
        settings TEXT NOT NULL DEFAULT '{}',
        created_at TEXT NOT NULL
    )""",
    # column_number: which side answered; NULL for the user's turn, which all sides share.
    """CREATE TABLE turns (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        conversation_id INTEGER NOT NULL REFERENCES conversations(id) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        column_number INTEGER,
        role TEXT NOT NULL CHECK (role IN ('system', 'user', 'assistant')),
        content TEXT NOT NULL,
        model TEXT,
        adapter_id INTEGER REFERENCES adapters(id),
        finish TEXT,
        created_at TEXT NOT NULL
    )""",
    "CREATE INDEX turns_by_conversation ON turns (conversation_id, position)",
    """CREATE TABLE votes (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        left_turn_id INTEGER NOT NULL REFERENCES turns(id) ON DELETE CASCADE,
        right_turn_id INTEGER NOT NULL REFERENCES turns(id) ON DELETE CASCADE,
        verdict TEXT NOT NULL CHECK (verdict IN ('left', 'right', 'tie', 'both bad')),
        note TEXT NOT NULL DEFAULT '',
        user TEXT NOT NULL REFERENCES users(name),
        pair_id INTEGER REFERENCES pairs(id),
        created_at TEXT NOT NULL,
        CHECK (left_turn_id <> right_turn_id),
        UNIQUE (left_turn_id, right_turn_id, user)
    )""",
    """CREATE TABLE actions (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        user TEXT NOT NULL REFERENCES users(name),
        label TEXT NOT NULL,
        sample_id INTEGER,
        created_at TEXT NOT NULL,
        undone_at TEXT,
        refused_at TEXT
    )""",
    "CREATE INDEX actions_by_user ON actions (user, id)",
    """CREATE TABLE changes (
        action_id INTEGER NOT NULL REFERENCES actions(id) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        table_name TEXT NOT NULL,
        row_key TEXT NOT NULL,
        before TEXT,
        after TEXT,
        PRIMARY KEY (action_id, position)
    ) WITHOUT ROWID""",
]


@migrations()
def m001_create_tables(db: Database) -> None:
    for statement in _TABLES:
        db.conn.execute(statement)
    db.table("samples").enable_fts(["question", "reference"], create_triggers=True)


@migrations()
def m002_keep_judges_calls(db: Database) -> None:
    """Checklists, the key of a judgement, the place at which a judge read an answer."""
    statements = [
        # A checklist is never changed: an edit is a new version of the sample's list.
        # instructions: the version of the text that asked for it; author: the person who edited it.
        """CREATE TABLE checklists (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            sample_id INTEGER NOT NULL REFERENCES samples(id) ON DELETE CASCADE,
            version INTEGER NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('ok', 'blocked', 'truncated', 'unparseable', 'failed')),
            items TEXT NOT NULL DEFAULT '[]',
            model TEXT,
            instructions TEXT NOT NULL DEFAULT '',
            author TEXT REFERENCES users(name),
            job_id INTEGER REFERENCES jobs(id),
            raw TEXT NOT NULL DEFAULT '',
            reason TEXT NOT NULL DEFAULT '',
            tokens_in INTEGER NOT NULL DEFAULT 0,
            tokens_out INTEGER NOT NULL DEFAULT 0,
            cost REAL NOT NULL DEFAULT 0,
            created_at TEXT NOT NULL,
            UNIQUE (sample_id, version),
            UNIQUE (job_id, sample_id)
        )""",
        # key: what was judged by whom in which order (jobs/judges/identity.py); '' for a person.
        "ALTER TABLE judgements ADD COLUMN key TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE judgements ADD COLUMN note TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE judgements ADD COLUMN checklist_id INTEGER REFERENCES checklists(id)",
        # asked_by: the person who had this one sample judged; a job's judgements are its user's.
        "ALTER TABLE judgements ADD COLUMN asked_by TEXT REFERENCES users(name)",
        "CREATE INDEX judgements_by_key ON judgements (key)",
        """CREATE INDEX judgements_without_scores ON judgements (state, sample_id, rater_id, id)
           WHERE state <> 'ok'""",
        # position: the place at which the judge read the answer, 0 for the letter A; NULL where there was none.
        "ALTER TABLE scores ADD COLUMN position INTEGER",
        """CREATE TABLE checklist_points (
            judgement_id INTEGER NOT NULL REFERENCES judgements(id) ON DELETE CASCADE,
            candidate_id INTEGER NOT NULL REFERENCES candidates(id) ON DELETE CASCADE,
            number INTEGER NOT NULL,
            met INTEGER NOT NULL CHECK (met IN (0, 1)),
            PRIMARY KEY (judgement_id, candidate_id, number)
        ) WITHOUT ROWID""",
    ]
    for statement in statements:
        db.conn.execute(statement)


@migrations()
def m003_keep_trainings(db: Database) -> None:
    """Scored answers in frozen data sets, what a run answered at its checkpoints, jobs of one sweep."""
    statements = [
        # kind: 'pair' is a preference; 'sample' is a sample with its reference and its scored answers.
        "ALTER TABLE dataset_rows ADD COLUMN kind TEXT NOT NULL DEFAULT 'pair' CHECK (kind IN ('pair', 'sample'))",
        # sweep: the id of the first job of the grid that a job belongs to.
        "ALTER TABLE jobs ADD COLUMN sweep INTEGER REFERENCES jobs(id)",
        "CREATE INDEX jobs_by_sweep ON jobs (sweep) WHERE sweep IS NOT NULL",
        # number: the watched item; sample_id: NULL for a text prompt; image: its picture as the model sees it,
        # a file of the run folder.
        """CREATE TABLE checkpoint_answers (
            job_id INTEGER NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
            step INTEGER NOT NULL,
            number INTEGER NOT NULL,
            sample_id INTEGER REFERENCES samples(id) ON DELETE SET NULL,
            prompt TEXT NOT NULL,
            image TEXT,
            text TEXT NOT NULL,
            tokens INTEGER NOT NULL,
            PRIMARY KEY (job_id, step, number)
        ) WITHOUT ROWID""",
    ]
    for statement in statements:
        db.conn.execute(statement)


@migrations()
def m004_keep_the_queue(db: Database) -> None:
    """The order of the queue, what ended an attempt, deleted runs, settings of the whole data folder."""
    statements = [
        # priority: higher comes first; place: the order among equals, NULL stands for the id.
        "ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE jobs ADD COLUMN place REAL",
        # after_id: it waits until that job is done, and fails where that one does.
        "ALTER TABLE jobs ADD COLUMN after_id INTEGER REFERENCES jobs(id)",
        # retries: how often it is tried again after attempts that died without having come further.
        "ALTER TABLE jobs ADD COLUMN retries INTEGER NOT NULL DEFAULT 4",
        # not_before: a job that is tried again waits until then.
        "ALTER TABLE jobs ADD COLUMN not_before TEXT",
        # deleted_at: its run folder lies in the bin; purged_at: it has gone from there.
        "ALTER TABLE jobs ADD COLUMN deleted_at TEXT",
        "ALTER TABLE jobs ADD COLUMN deleted_by TEXT REFERENCES users(name)",
        "ALTER TABLE jobs ADD COLUMN purged_at TEXT",
        # cause: jobs/verdicts.py; log_begin, log_end: its part of log.txt, in bytes.
        "ALTER TABLE attempts ADD COLUMN cause TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE attempts ADD COLUMN exit_code INTEGER",
        "ALTER TABLE attempts ADD COLUMN log_begin INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE attempts ADD COLUMN log_end INTEGER",
        # advanced: it did something that no attempt before it had done.
        "ALTER TABLE attempts ADD COLUMN advanced INTEGER NOT NULL DEFAULT 0",
        """CREATE TABLE settings (
            name TEXT PRIMARY KEY,
            value TEXT NOT NULL,
            user TEXT REFERENCES users(name),
            changed_at TEXT NOT NULL
        ) WITHOUT ROWID""",
    ]
    for statement in statements:
        db.conn.execute(statement)


@migrations()
def m005_keep_contests(db: Database) -> None:
    """How each question of a chat was asked, scores of its answers, lists of prompts to vote through."""
    statements = [
        # settings: of a question: {"model", "columns", "system", "temperature", ...} as it was asked.
        "ALTER TABLE turns ADD COLUMN settings TEXT NOT NULL DEFAULT '{}'",
        # A person's metrics for an answer of the chat; they become scores where a pair is made of it.
        """CREATE TABLE turn_scores (
            turn_id INTEGER NOT NULL REFERENCES turns(id) ON DELETE CASCADE,
            user TEXT NOT NULL REFERENCES users(name),
            metric TEXT NOT NULL,
            value INTEGER NOT NULL CHECK (value BETWEEN 0 AND 4),
            PRIMARY KEY (turn_id, user, metric)
        ) WITHOUT ROWID""",
        "CREATE INDEX votes_by_pair ON votes (pair_id) WHERE pair_id IS NOT NULL",
        # A list of prompts that two or three speakers answer; its conversations are voted on one by one.
        """CREATE TABLE contests (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            name TEXT NOT NULL,
            user TEXT NOT NULL REFERENCES users(name),
            job_id INTEGER NOT NULL UNIQUE REFERENCES jobs(id) ON DELETE CASCADE,
            settings TEXT NOT NULL DEFAULT '{}',
            created_at TEXT NOT NULL
        )""",
        # number: the prompt's place in its contest's list.
        "ALTER TABLE conversations ADD COLUMN contest_id INTEGER REFERENCES contests(id) ON DELETE CASCADE",
        "ALTER TABLE conversations ADD COLUMN number INTEGER",
        """CREATE UNIQUE INDEX conversations_by_contest ON conversations (contest_id, number)
           WHERE contest_id IS NOT NULL""",
    ]
    for statement in statements:
        db.conn.execute(statement)


@migrations()
def m006_keep_the_annotators_day(db: Database) -> None:
    """Flags, notes, skips, discards, leases, views, people with roles and passwords, keys of requests."""
    statements = [
        # sample_id: whose history a change belongs to; NULL in changes of earlier versions.
        "ALTER TABLE changes ADD COLUMN sample_id INTEGER",
        "CREATE INDEX changes_by_sample ON changes (sample_id, action_id) WHERE sample_id IS NOT NULL",
        "CREATE INDEX actions_by_sample ON actions (sample_id, id) WHERE sample_id IS NOT NULL",
        # A browser names each change by a key, so that one sent twice is made once; answer: what was said to it.
        """CREATE TABLE request_keys (
            key TEXT PRIMARY KEY,
            user TEXT NOT NULL REFERENCES users(name),
            answer TEXT NOT NULL,
            created_at TEXT NOT NULL
        ) WITHOUT ROWID""",
        "CREATE INDEX request_keys_by_age ON request_keys (created_at)",
        """ALTER TABLE users ADD COLUMN role TEXT NOT NULL DEFAULT 'annotator'
           CHECK (role IN ('annotator', 'researcher', 'admin'))""",
        # password: argon2's encoded hash; NULL: nobody comes in by a password under this name.
        "ALTER TABLE users ADD COLUMN password TEXT",
        # era: a session names the era it was begun in; raising it ends all sessions of the person.
        "ALTER TABLE users ADD COLUMN era INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE users ADD COLUMN deleted_at TEXT",
        """CREATE TABLE flags (
            sample_id INTEGER NOT NULL REFERENCES samples(id) ON DELETE CASCADE,
            user TEXT NOT NULL REFERENCES users(name),
            created_at TEXT NOT NULL,
            PRIMARY KEY (sample_id, user)
        ) WITHOUT ROWID""",
        # One note a person and sample; an id, for the search.
        """CREATE TABLE notes (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            sample_id INTEGER NOT NULL REFERENCES samples(id) ON DELETE CASCADE,
            user TEXT NOT NULL REFERENCES users(name),
            text TEXT NOT NULL,
            created_at TEXT NOT NULL,
            UNIQUE (sample_id, user)
        )""",
        # A person's queues pass a skipped sample over; others still get it.
        """CREATE TABLE skips (
            sample_id INTEGER NOT NULL REFERENCES samples(id) ON DELETE CASCADE,
            user TEXT NOT NULL REFERENCES users(name),
            created_at TEXT NOT NULL,
            PRIMARY KEY (sample_id, user)
        ) WITHOUT ROWID""",
        # A discarded sample is in no list, queue, rule or data set, and can be taken back.
        """CREATE TABLE discards (
            sample_id INTEGER PRIMARY KEY REFERENCES samples(id) ON DELETE CASCADE,
            user TEXT NOT NULL REFERENCES users(name),
            created_at TEXT NOT NULL
        )""",
        # until: seconds since the epoch; a lease that has run out binds nobody.
        """CREATE TABLE leases (
            sample_id INTEGER NOT NULL REFERENCES samples(id) ON DELETE CASCADE,
            user TEXT NOT NULL REFERENCES users(name),
            until REAL NOT NULL,
            PRIMARY KEY (sample_id, user)
        ) WITHOUT ROWID""",
        "CREATE INDEX leases_by_user ON leases (user, until)",
        # query: of an address of the Samples page; shared: others see the view too.
        """CREATE TABLE saved_views (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            user TEXT NOT NULL REFERENCES users(name),
            name TEXT NOT NULL,
            query TEXT NOT NULL,
            shared INTEGER NOT NULL DEFAULT 0,
            created_at TEXT NOT NULL,
            UNIQUE (user, name)
        )""",
        # imported: the source that a preference came with; NULL: it was made here.
        "ALTER TABLE pairs ADD COLUMN imported TEXT",
    ]
    for statement in statements:
        db.conn.execute(statement)


@migrations()
def m007_find_samples(db: Database) -> None:
    """What is known of each sample in one narrow row, and its words for the search; see `storage.facts`."""
    columns = [
        "labels",
        "answers",
        "people",
        "problems",
        "pairs",
        "flags",
        "skips",
        "discarded",
        "images",
        "turns",
    ]
    columns += ["gap", "longest", "helpfulness", "correctness", "coherence", "complexity", "verbosity"]
    statements = [
        f"""CREATE TABLE sample_facts (
            sample_id INTEGER PRIMARY KEY REFERENCES samples(id) ON DELETE CASCADE,
            source TEXT NOT NULL,
            split TEXT,
            {", ".join(f"{name} INTEGER" for name in columns)}
        )""",
        *[f"CREATE INDEX facts_{name} ON sample_facts ({name})" for name in ("source", "split", *columns)],
        # Samples whose facts are older than what they are facts of.
        "CREATE TABLE stale_samples (sample_id INTEGER PRIMARY KEY)",
        "CREATE INDEX judgements_by_rater ON judgements (rater_id, sample_id)",
        "CREATE TABLE tallies (name TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID",
        "INSERT INTO tallies (name, number) SELECT 'samples', count(*) FROM samples",
        # A sample can be listed at once, before anything is known of it.
        """CREATE TRIGGER facts_of_a_new_sample AFTER INSERT ON samples BEGIN
            INSERT OR REPLACE INTO sample_facts (sample_id, source, split) VALUES (new.id, new.source, new.split);
            INSERT OR IGNORE INTO stale_samples VALUES (new.id);
            UPDATE tallies SET number = number + 1 WHERE name = 'samples';
        END""",
        """CREATE TRIGGER facts_of_a_gone_sample AFTER DELETE ON samples BEGIN
            INSERT OR IGNORE INTO stale_samples VALUES (old.id);
            UPDATE tallies SET number = number - 1 WHERE name = 'samples';
        END""",
        "CREATE TRIGGER facts_of_a_sample AFTER UPDATE ON samples"
        " BEGIN INSERT OR IGNORE INTO stale_samples VALUES (new.id); END",
    ]
    for table in ("candidates", "judgements", "pairs", "flags", "skips", "discards", "notes"):
        for event, row in (("INSERT", "new"), ("UPDATE", "new"), ("DELETE", "old")):
            statements.append(
                f"CREATE TRIGGER facts_{table}_{event.lower()} AFTER {event} ON {table}"
                f" BEGIN INSERT OR IGNORE INTO stale_samples VALUES ({row}.sample_id); END"
            )
    # Scores come with their judgement; those that change later are told by their candidate's sample.
    for event, row in (("INSERT", "new"), ("UPDATE", "new"), ("DELETE", "old")):
        statements.append(
            f"CREATE TRIGGER facts_scores_{event.lower()} AFTER {event} ON scores BEGIN"
            f" INSERT OR IGNORE INTO stale_samples"
            f" SELECT sample_id FROM candidates WHERE id = {row}.candidate_id; END"
        )
    statements += [
        # prefix: beginnings of words of so many letters have lists of their own; see `selecting.spelt`.
        """CREATE VIRTUAL TABLE words_fts USING fts5
           (text, tokenize = "unicode61 remove_diacritics 2", prefix = '1 2 3 4')""",
        "INSERT INTO sample_facts (sample_id, source, split) SELECT id, source, split FROM samples",
        "INSERT INTO stale_samples SELECT id FROM samples",
    ]
    db.table("samples").disable_fts()  # answers and notes are searched, too, now
    for statement in statements:
        db.conn.execute(statement)


@migrations()
def m008_evaluate(db: Database) -> None:
    """Benchmarks' items, models' answers to them and what graders made of these; see `storage.evaluations`."""
    for statement in evaluation_tables.STATEMENTS:
        db.conn.execute(statement)
