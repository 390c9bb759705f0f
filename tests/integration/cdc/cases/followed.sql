-- Rows come, change, change their keys and go, in one batch and in several.

-- stream
CREATE TABLE {t} (id int PRIMARY KEY, v text, n numeric(10,2), at timestamptz DEFAULT now());
INSERT INTO {t} SELECT g, 'v' || g, g / 7.0 FROM generate_series(1, 200) g;

-- stream
INSERT INTO {t} SELECT g, NULL, g FROM generate_series(201, 300) g;
-- commit
UPDATE {t} SET v = v || '!' WHERE id <= 50;
-- commit
UPDATE {t} SET id = id + 1000 WHERE id BETWEEN 60 AND 69;
-- commit
DELETE FROM {t} WHERE id BETWEEN 70 AND 79;
-- commit
INSERT INTO {t} VALUES (70, 'again');

-- stream
UPDATE {t} SET n = coalesce(n, 0) + 1 WHERE id % 3 = 0;
-- commit
DELETE FROM {t} WHERE id IN (SELECT min(id) FROM {t});
-- commit
UPDATE {t} SET n = coalesce(n, 0) + 1 WHERE id % 3 = 0;
-- commit
DELETE FROM {t} WHERE id IN (SELECT min(id) FROM {t});
