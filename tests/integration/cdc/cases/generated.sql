-- Stored generated columns come by the stream where the server sends them, virtual ones do not.

-- stream
CREATE TABLE {t} (id int PRIMARY KEY, n int, s int GENERATED ALWAYS AS (n * 2) STORED{virtual});
INSERT INTO {t} VALUES (1, 1);

-- stream
UPDATE {t} SET n = 5;
-- commit
INSERT INTO {t} VALUES (2, 2);

-- stream
