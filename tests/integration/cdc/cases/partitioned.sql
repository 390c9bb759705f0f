-- Changes of all partitions, and rows that move between them, are the root table's.
-- config: {"partition_by": "d"}

-- stream
CREATE TABLE {t} (id int, d date, v text, PRIMARY KEY (id, d)) PARTITION BY RANGE (d);
CREATE TABLE {t}_3 PARTITION OF {t} FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
CREATE TABLE {t}_4 PARTITION OF {t} FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
INSERT INTO {t} SELECT g, date '2023-06-01' + g, 'v' FROM generate_series(1, 300) g;

-- stream
UPDATE {t} SET v = 'w' WHERE id % 7 = 0;
-- commit
UPDATE {t} SET d = d + 365 WHERE d < '2023-07-01';
-- commit
DELETE FROM {t} WHERE id = 200;

-- stream
