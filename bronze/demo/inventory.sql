-- The rows of the demo source: suppliers, products, warehouses, stock.
--
-- Errors that it contains on purpose, by number (all other rows are consistent):
--   products       product_id % 23 = 5            product_name has spaces around it
--                  product_id % 29 = 7            category in capitals
--   suppliers      supplier_id % 41 = 3           contact_number is text ('call the office')
--   inventory      inventory_id % 997 = 100       quantity_available is 1000000 (an outlier),
--                                                 unlike stock_levels
--                  inventory_id % 1499 = 77       quantity_available is -5 (oversold)

insert into suppliers
select
    id,
    pg_temp.one('sup family', id, family)
        || ' ' || pg_temp.one('sup form', id, array['GmbH', '& Sons', 'S.A.', 'Ltd', '株式会社', 'Oy']),
    case
        when id % 41 = 3 then 'call the office'
        when pg_temp.u('sup phone', id) < 0.95
            then dial || ' ' || 1000000 + pg_temp.pick('sup number', id, 8999999)
    end,
    pg_temp.one('sup given', id, given) || ' ' || pg_temp.one('sup contact', id, family),
    'sales@' || pg_temp.one('sup family', id, family_ascii) || id || '.example',
    city,
    country,
    case when pg_temp.u('sup rated', id) < 0.9
        then (250 + pg_temp.pick('sup rating', id, 250)) * 0.01 end,
    make_interval(days => pg_temp.pick('sup lead', id, 45)::int, hours => (id % 3 * 6)),
    pg_temp.one('sup terms', id, array[14, 30, 60, 90]),
    date '2015-01-01' + pg_temp.pick('sup from', id, 2000)::int,
    case when pg_temp.u('sup ends', id) < 0.3
        then date '2026-01-01' + pg_temp.pick('sup until', id, 900)::int end,
    (array['ISO 9001', 'ISO 14001', 'Fairtrade', 'FSC'])[1 : pg_temp.pick('sup certs', id, 5) - 1],
    pg_temp.u('sup preferred', id) < 0.2,
    timestamptz '2021-01-01 08:00Z' + pg_temp.hours(8000 * pg_temp.u('sup created', id)),
    timestamptz '2022-01-01 08:00Z' + pg_temp.hours(30000 * pg_temp.u('sup updated', id))
from generate_series(1, pg_temp.size('suppliers')) id
join places on place = pg_temp.pick('sup place', id, 12)
order by id;

insert into warehouses
select
    id,
    city || ' ' || id || ' '
        || pg_temp.one('wh name', id, array['North', 'Hafen', '第一倉庫', 'Süd', 'Airport']),
    country || lpad(id::text, 3, '0'),
    city,
    country,
    zone,
    round((-50 + 110 * pg_temp.u('wh lat', id))::numeric, 5),
    round((-120 + 260 * pg_temp.u('wh lon', id))::numeric, 5),
    5000 + pg_temp.pick('wh capacity', id, 900000) * 0.1,
    make_time(5 + id % 3, 30 * (id % 2), 0),
    case id % 4 when 0 then time '24:00' else make_time(18 + id % 4, 0, 0) end,
    set_masklen(inet '10.0.0.0' + (id::bigint << 16), 16)::cidr,
    date '2005-01-01' + pg_temp.pick('wh opened', id, 5000)::int,
    id % 19 <> 18,
    timestamptz '2021-01-01 00:00Z' + pg_temp.hours(id),
    timestamptz '2023-01-01 00:00Z' + pg_temp.hours(20000 * pg_temp.u('wh updated', id))
from generate_series(1, pg_temp.size('warehouses')) id
join places on place = 1 + id % 12
order by id;

insert into products
select
    id,
    case when id % 23 = 5 then '  ' || name || ' ' else name end,
    case when id % 29 = 7 then upper(category) else category end,
    pg_temp.popular('prod supplier', id, pg_temp.size('suppliers')),
    'SKU-' || lpad(id::text, 7, '0'),
    case when pg_temp.u('prod ean', id) < 0.93
        then 4000000000000 + pg_temp.pick('prod barcode', id, 999999999999) end,
    price,
    round(price * 0.01 * (40 + pg_temp.pick('prod margin', id, 35)), 4),
    case when pg_temp.u('prod weighed', id) < 0.97
        then (30 * pg_temp.u('prod weight', id) ^ 3 + 0.05)::real end,
    (array['new', 'eco', 'bestseller', 'fragile', 'größe xl', 'お得'])
        [pg_temp.pick('prod tag', id, 6) : pg_temp.pick('prod tags', id, 6)],
    jsonb_build_object('color', pg_temp.one('prod color', id, array['red', 'blue', 'schwarz', '白']),
        'warranty_months', 12 * pg_temp.pick('prod warranty', id, 4),
        'size', jsonb_build_array(id % 50, id % 70)),
    case when pg_temp.u('prod text', id) < 0.6
        then name || E' – with care.\nMade for every day.' end,
    case when pg_temp.u('prod image', id) < 0.8 then sha256(convert_to('image ' || id, 'UTF8')) end,
    date '2018-01-01' + pg_temp.pick('prod launch', id, 1400)::int,
    case when id % 20 = 19 then date '2024-01-01' + pg_temp.pick('prod end', id, 500)::int end,
    id % 20 <> 19,
    timestamptz '2022-01-01 06:00Z' + pg_temp.hours(3000 * pg_temp.u('prod created', id)),
    timestamptz '2022-07-01 06:00Z' + pg_temp.hours(26000 * pg_temp.u('prod updated', id) ^ 0.5)
from (
    select
        id,
        pg_temp.price('prod price', id) as price,
        pg_temp.one('prod category', id, array['Tools', 'Garden', 'Kitchen', 'Electronics', 'Toys',
            'Office', 'Bücher', 'Sports']) as category,
        pg_temp.one('prod line', id, array['Classic', 'Smart', 'Mini', 'Pro', 'Öko', 'Señorita'])
            || ' ' || pg_temp.one('prod thing', id, array['Hammer', 'Lampe', 'やかん', 'Łopata',
                'Mixer', 'Puzzle', 'Stuhl', 'Kablo', 'Crêpière'])
            || ' ' || 100 + id % 900 as name
    from generate_series(1, pg_temp.size('products')) id
    offset 0
)
order by id;

-- A product lies in consecutive warehouses, from one by chance on; there are enough of them.
create temporary table stock as
select
    id,
    product_id,
    1 + (pg_temp.pick('stock first', product_id, 1000) + (id - 1) / pg_temp.size('products'))
        % pg_temp.size('warehouses') as warehouse_id,
    cost,
    floor(400 * pg_temp.u('stock', id) ^ 2)::int as available,
    floor(20 * pg_temp.u('reserved', id) ^ 3)::int
        + case when id % 1499 = 77 then 5 else 0 end as reserved,
    pg_temp.opening() - pg_temp.hours(24 * 300 * pg_temp.u('restocked', id) ^ 2 + 1) as restocked_at
from generate_series(1, pg_temp.size('inventory')) id
join products on product_id = 1 + (id - 1) % pg_temp.size('products');

insert into inventory
select
    id,
    product_id,
    case when id % 997 = 100 then 1000000 when id % 1499 = 77 then -5 else available end,
    warehouse_id,
    chr(65 + id % 26) || '-' || lpad((id % 90)::text, 2, '0'),
    cost,
    case when pg_temp.u('lot', id) < 0.6 then 'L' || pg_temp.pick('lot number', id, 99999) end,
    case when pg_temp.u('expires', id) < 0.15
        then date '2025-08-01' + pg_temp.pick('expiry', id, 700)::int end,
    case when pg_temp.u('never', id) < 0.9 then restocked_at end,
    restocked_at - interval '300 days',
    restocked_at
from stock
order by id;

insert into stock_levels
select
    id,
    product_id,
    warehouse_id,
    case when id % 1499 = 77 then -5 else available end + reserved,
    reserved,
    10 * pg_temp.pick('reorder point', id, 10),
    50 * pg_temp.pick('reorder quantity', id, 10),
    pg_temp.one('class', product_id, array['A', 'B', 'B', 'C', 'C', 'C']),
    case when pg_temp.u('counted', id) < 0.85 then (restocked_at at time zone 'UTC')::date end,
    restocked_at - interval '300 days',
    restocked_at
from stock
where id <= pg_temp.size('stock_levels')
order by id;
