-- TRUNCATE between inserts of one transaction; vanished rows are marked.
-- config: {"on_delete": "mark"}
-- ids: [[5, 30], []]

-- stream
CREATE TABLE {t} (id int PRIMARY KEY, v text, n numeric(10,2), at timestamptz DEFAULT now());
INSERT INTO {t} SELECT g, 'v' FROM generate_series(1, 20) g;

-- stream
INSERT INTO {t} VALUES (99, 'before');
TRUNCATE {t};
INSERT INTO {t} VALUES (5, 'new'), (30, 'new');

-- stream
TRUNCATE {t};
