-- Old rows come with the columns of a unique index.

-- stream
CREATE TABLE {t} (id int PRIMARY KEY, k text NOT NULL, v text);
CREATE UNIQUE INDEX {t}_k ON {t} (k);
ALTER TABLE {t} REPLICA IDENTITY USING INDEX {t}_k;
INSERT INTO {t} SELECT g, 'k' || g, 'v' FROM generate_series(1, 20) g;

-- stream
UPDATE {t} SET v = 'w' WHERE id < 5;
-- commit
UPDATE {t} SET id = id + 100 WHERE id = 5;
-- commit
UPDATE {t} SET k = k || 'x' WHERE id = 6;
-- commit
DELETE FROM {t} WHERE id = 7;

-- stream
