-- Keys move over partitions of the Bronze table.
-- config: {"key": ["id"], "partition_by": "d"}
-- quiet: true

-- stream
CREATE TABLE {t} (id int PRIMARY KEY DEFERRABLE, d date);
ALTER TABLE {t} REPLICA IDENTITY FULL;
INSERT INTO {t} SELECT g, date '2024-01-01' + g % 3 FROM generate_series(1, 20) g;

-- stream
UPDATE {t} SET id = id + 1;
-- commit
UPDATE {t} SET id = 22 - id;

-- stream
UPDATE {t} SET id = id - 1;
-- commit
UPDATE {t} SET id = 21 - id, d = d + 1;
