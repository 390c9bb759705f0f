-- Large values that an UPDATE leaves alone are not sent, also when keys move within a batch.

-- stream
CREATE TABLE {t} (id int PRIMARY KEY, n int, big text, other text);
ALTER TABLE {t} ALTER big SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL;
INSERT INTO {t} SELECT g, 0, repeat(md5(g::text), 200), repeat(md5((-g)::text), 200) FROM generate_series(1, 10) g;

-- stream
UPDATE {t} SET n = 1 WHERE id <= 5;
UPDATE {t} SET id = 101 WHERE id = 1;
UPDATE {t} SET id = 102, n = 2 WHERE id = 101;
UPDATE {t} SET big = 'small' WHERE id = 2;
UPDATE {t} SET n = 3 WHERE id = 2;
INSERT INTO {t} SELECT g, 0, repeat(md5(g::text), 200), repeat(md5((-g)::text), 200) FROM generate_series(11, 12) g;
UPDATE {t} SET n = 4 WHERE id = 11;
UPDATE {t} SET id = 112 WHERE id = 12;
DELETE FROM {t} WHERE id = 3;

-- stream
