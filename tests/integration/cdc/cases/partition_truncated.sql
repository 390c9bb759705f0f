-- A partition is truncated between two streams, which no message tells.

-- stream
CREATE TABLE {t} (id int, d int, PRIMARY KEY (id, d)) PARTITION BY LIST (d);
CREATE TABLE {t}_1 PARTITION OF {t} FOR VALUES IN (1);
CREATE TABLE {t}_2 PARTITION OF {t} FOR VALUES IN (2);
INSERT INTO {t} SELECT g, 1 + g % 2 FROM generate_series(1, 100) g;

-- stream
TRUNCATE {t}_1;

-- stream
