-- The config's key is not the replica identity.
-- config: {"key": ["id"]}
-- quiet: true

-- stream
CREATE TABLE {t} (id int, n int, v text, big text, PRIMARY KEY (id, n));
ALTER TABLE {t} ALTER big SET STORAGE EXTERNAL;
INSERT INTO {t} SELECT g, g, 'v', repeat(md5(g::text), 200) FROM generate_series(1, 20) g;

-- stream
UPDATE {t} SET id = id + 1;
-- commit
UPDATE {t} SET v = 'w';
-- commit
UPDATE {t} SET id = 22 - id;

-- stream
INSERT INTO {t} VALUES (5, 50, 'new', 'n');
DELETE FROM {t} WHERE id = 5 AND n <> 50;
