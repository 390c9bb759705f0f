-- The shop that the pages use: four tables, 5,820 rows. As the owner of an empty database:
--   psql -f shop.sql
CREATE TABLE customers (
    customer_id int PRIMARY KEY,
    name text NOT NULL,
    email text,
    city text NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE products (
    product_id int PRIMARY KEY,
    name text NOT NULL,
    price numeric(10, 2) NOT NULL CHECK (price > 0)
);
CREATE TABLE orders (
    order_id int PRIMARY KEY,
    customer_id int NOT NULL REFERENCES customers,
    status text NOT NULL,
    total numeric(12, 2) NOT NULL,
    ordered_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE order_details (
    order_id int REFERENCES orders ON DELETE CASCADE,
    product_id int REFERENCES products,
    quantity int NOT NULL,
    unit_price numeric(10, 2) NOT NULL,
    PRIMARY KEY (order_id, product_id)
);

INSERT INTO customers
SELECT i, (ARRAY['Ada', 'Ben', 'Clara', 'David', 'Eva'])[1 + i % 5] || ' ' ||
    (ARRAY['Adler', 'Brandt', 'Conrad', 'Dietz', 'Engel', 'Franke', 'Graf'])[1 + i % 7],
    'customer' || i || '@example.com', (ARRAY['Berlin', 'Lyon', 'Porto'])[1 + i % 3],
    '2026-01-01 08:00+00'::timestamptz + i * interval '1 hour'
FROM generate_series(1, 200) AS i;

INSERT INTO products SELECT i, 'Product ' || i, (5 + i * 7 % 90) + 0.99
FROM generate_series(1, 20) AS i;

INSERT INTO orders
SELECT i, 1 + i * 13 % 200, (ARRAY['paid', 'shipped', 'delivered'])[1 + i % 3], 0,
    '2026-03-01 09:00+00'::timestamptz + i * interval '17 minutes',
    '2026-03-01 09:00+00'::timestamptz + i * interval '17 minutes'
FROM generate_series(1, 1600) AS i;

INSERT INTO order_details
SELECT o, p.product_id, 1 + (o + n) % 3, p.price
FROM generate_series(1, 1600) AS o, generate_series(0, 2) AS n
JOIN products AS p ON true
WHERE p.product_id = 1 + (o * 3 + n * 5) % 20 AND (n < 2 OR o % 2 = 0);

UPDATE orders SET total = d.total
FROM (SELECT order_id, sum(quantity * unit_price) AS total FROM order_details GROUP BY 1) AS d
WHERE d.order_id = orders.order_id;
VACUUM ANALYZE;
