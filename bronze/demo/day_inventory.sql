-- One day of business. Each statement follows a line "table: verb" and returns the keys of the rows
-- that it changed; one with the verb prepare returns nothing. pg_temp.size('day') is the number of
-- new orders.

-- day: prepare
create function pg_temp.at(draw text, id bigint) returns timestamptz
language sql immutable parallel safe
return pg_temp.opening() + pg_temp.hours(6 + 14 * pg_temp.u(draw, id));

-- customers: insert
insert into customers (
    customer_name, email, customer_uuid, phone, segment, city, country, loyalty_points,
    marketing_consent, created_at, updated_at
)
select
    pg_temp.one('new given', i, given) || ' ' || pg_temp.one('new family', i, family),
    case when i % 20 > 0 then pg_temp.one('new given', i, given_ascii) || '.'
        || pg_temp.one('new family', i, family_ascii) || '@example.net' end,
    pg_temp.uuid('new customer', extract(epoch from pg_temp.opening())::bigint + i),
    dial || ' ' || 1000000 + pg_temp.pick('new phone', i, 8999999),
    'retail',
    city,
    country,
    0,
    i % 3 > 0,
    pg_temp.at('new customer', i),
    pg_temp.at('new customer', i)
from generate_series(1, 1 + pg_temp.size('day') / 4) i
join places on place = pg_temp.pick('new place', i, 12)
order by i
returning customer_id;

-- customers: update
update customers
set
    phone = case
        when customer_id % 3 = 0
            then '+49 ' || 1000000 + pg_temp.pick('phone', customer_id, 8999999)
        else phone
    end,
    email = case
        when customer_id % 3 = 1 then 'kunde' || customer_id || '@example.org'
        else email
    end,
    loyalty_points = loyalty_points + pg_temp.pick('points', customer_id, 500),
    updated_at = pg_temp.at('customer', customer_id)
where customer_id in (
    select customer_id
    from customers
    where created_at < pg_temp.opening()
    order by pg_temp.u('customers', customer_id), customer_id
    limit 3 + pg_temp.size('day') / 2
)
returning customer_id;

-- customers: delete
-- Customers without orders who asked for erasure.
delete from customers
where customer_id in (
    select customer_id
    from customers
    where created_at < pg_temp.opening()
        and not exists (select from orders where orders.customer_id = customers.customer_id)
    order by pg_temp.u('erased', customer_id), customer_id
    limit 1 + pg_temp.size('day') / 50
)
returning customer_id;

-- suppliers: insert
insert into suppliers (
    supplier_name, contact_number, contact_name, city, country, lead_time, payment_days,
    contract_from, certifications, is_preferred, created_at, updated_at
)
select
    family[1] || ' & ' || family[2], dial || ' 5550100', given[1] || ' ' || family[1], city,
    country, interval '9 days', 30, (pg_temp.opening() at time zone 'UTC')::date,
    '{ISO 9001}', false,
    pg_temp.at('new supplier', place), pg_temp.at('new supplier', place)
from places
where place = pg_temp.pick('new supplier', extract(epoch from pg_temp.opening())::bigint, 12)
returning supplier_id;

-- suppliers: update
update suppliers
set
    contact_number = '+44 ' || 1000000 + pg_temp.pick('contact', supplier_id, 8999999),
    rating = 2.5 + 0.01 * pg_temp.pick('rating', supplier_id, 250),
    updated_at = pg_temp.at('supplier', supplier_id)
where supplier_id in (
    select supplier_id
    from suppliers
    where created_at < pg_temp.opening()
    order by pg_temp.u('suppliers', supplier_id), supplier_id
    limit 1 + pg_temp.size('day') / 50
)
returning supplier_id;

-- warehouses: update
update warehouses
set capacity_m3 = capacity_m3 + 10.5, updated_at = pg_temp.at('warehouse', warehouse_id)
where warehouse_id = pg_temp.pick('warehouse', 0, (select count(*) from warehouses))
returning warehouse_id;

-- products: insert
insert into products (
    product_name, category, supplier_id, sku, list_price, cost, tags, attributes, launched_on,
    is_active, created_at, updated_at
)
select
    'Neuheit ' || last_id + i,
    pg_temp.one('new category', i, array['Tools', 'Garden', 'Kitchen', 'Toys']),
    (select max(supplier_id) from suppliers),
    'SKU-' || lpad((last_id + i)::text, 7, '0'),
    pg_temp.price('new price', last_id + i),
    round(pg_temp.price('new price', last_id + i) * 0.55, 4),
    '{new}',
    '{"color": "白"}',
    (pg_temp.opening() at time zone 'UTC')::date,
    true,
    pg_temp.at('new product', i),
    pg_temp.at('new product', i)
from (select max(product_id) as last_id from products)
cross join generate_series(1, 1 + pg_temp.size('day') / 50) i
order by i
returning product_id;

-- products: update
update products
set
    list_price = 0.01
        + round(list_price * (0.9 + 0.01 * pg_temp.pick('reprice', product_id, 25)), 2),
    updated_at = pg_temp.at('product', product_id)
where product_id in (
    select product_id
    from products
    where is_active and created_at < pg_temp.opening()
    order by pg_temp.u('products', product_id), product_id
    limit 2 + pg_temp.size('day') / 4
)
returning product_id;

-- inventory: insert
insert into inventory (
    product_id, quantity_available, warehouse_id, bin, unit_cost, restocked_at, created_at,
    updated_at
)
select product_id, 60 * warehouse_id, warehouse_id, 'N-01', cost, updated_at, updated_at, updated_at
from products
cross join generate_series(1, 2) warehouse_id
where created_at >= pg_temp.opening()
order by product_id, warehouse_id
returning inventory_id;

-- stock_levels: insert
insert into stock_levels (
    product_id, warehouse_id, quantity_on_hand, quantity_reserved, reorder_point,
    reorder_quantity, abc_class, counted_on, created_at, updated_at
)
select
    product_id, warehouse_id, quantity_available, 0, 20, 100, 'B',
    (pg_temp.opening() at time zone 'UTC')::date, created_at, updated_at
from inventory
where created_at >= pg_temp.opening()
order by inventory_id
returning stock_level_id;
