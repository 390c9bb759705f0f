-- Keys move over partitions with primary keys of their own.
-- config: {"key": ["id"]}
-- quiet: true

-- stream
CREATE TABLE {t} (id int, d int, v text, PRIMARY KEY (id, d)) PARTITION BY LIST (d);
CREATE TABLE {t}_1 PARTITION OF {t} FOR VALUES IN (1);
CREATE TABLE {t}_2 PARTITION OF {t} FOR VALUES IN (2);
INSERT INTO {t} SELECT g, 1 + g % 2, 'v' || g FROM generate_series(1, 20) g;

-- stream
UPDATE {t} SET id = id + 1;
-- commit
UPDATE {t} SET d = 3 - d, id = 2 + id % 20;

-- stream
INSERT INTO {t} VALUES (9, 3 - (SELECT d FROM {t} WHERE id = 9), 'new');
DELETE FROM {t} WHERE id = 9 AND v <> 'new';
