-- Schema evolution within a transaction: a wider type.
-- resynced: true

-- stream
CREATE TABLE {t} (id int PRIMARY KEY, v text, n numeric(10,2), at timestamptz DEFAULT now());
INSERT INTO {t} SELECT g, 'v' FROM generate_series(1, 20) g;

-- stream
UPDATE {t} SET n = 1 WHERE id < 5;
ALTER TABLE {t} ALTER id TYPE bigint;
UPDATE {t} SET n = 2 WHERE id < 3;
INSERT INTO {t} (id) VALUES (50);

-- stream
UPDATE {t} SET n = 3 WHERE id < 10;
