-- Another table of the same name: its rows take the place of the old ones.
-- ids: [[2, 3], [2, 3, 4]]

-- stream
CREATE TABLE {t} (id int PRIMARY KEY, v text, n numeric(10,2), at timestamptz DEFAULT now());
INSERT INTO {t} VALUES (1, 'old'), (2, 'old');

-- stream
DROP TABLE {t};
-- commit
CREATE TABLE {t} (id int PRIMARY KEY, v text, n numeric(10,2), at timestamptz DEFAULT now());
-- commit
INSERT INTO {t} VALUES (2, 'new'), (3, 'new');

-- stream
INSERT INTO {t} VALUES (4, 'new');
