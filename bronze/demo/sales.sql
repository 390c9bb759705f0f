-- The rows of the demo source: customers, orders, shipments, returns.
--
-- Errors that it contains on purpose, by number (all other rows are consistent):
--   customers      customer_id % 97 = 11          email without an @
--                  customer_id % 101 = 13         email is ''
--                  customer_id % 89 = 17          customer_name with spaces around it, upper case
--   order_details  order_detail_id % 3989 = 42    unit_price is 1000 times too high (an outlier)
--                  order_detail_id % 4999 = 123   line_total is 1.00 too high
-- One in five of the notes and comments is an empty string.

-- Three years of days, each with its share of the orders: the business grows, weekends are quiet,
-- November and December are busy.
create temporary table calendar as
with days as (
    select
        day::date,
        (1 + 0.5 * extract(epoch from day - start) / extract(epoch from pg_temp.opening() - start))
            * (array[1.1, 1.0, 1.0, 1.05, 1.2, 0.7, 0.5])[extract(isodow from day)::int]
            * (array[0.8, 0.8, 0.9, 1, 1, 0.9, 0.8, 0.8, 1, 1.1, 1.7, 1.9])
                [extract(month from day)::int] as weight
    from (values (timestamp '2022-07-01')) starts (start)
    cross join generate_series(start, timestamp '2025-06-30', '1 day') day
),
shares as (
    select day, sum(weight) over (order by day) / sum(weight) over () as share from days
)
select
    day,
    1 + coalesce(lag(floor(share * pg_temp.size('orders'))) over (order by day), 0)::int
        as first_order,
    floor(share * pg_temp.size('orders'))::int as last_order
from shares;

create temporary table sales as
select
    *,
    case
        when is_cancelled then 'cancelled'
        when done_at < pg_temp.opening() then 'delivered'
        when left_at < pg_temp.opening() and fulfilment = 'ship' then 'shipped'
        when packed_at < pg_temp.opening() then 'packed'
        when ordered_at + interval '3 hours' < pg_temp.opening() then 'paid'
        else 'pending'
    end::order_status as status
from (
    select
        *,
        ordered_at + pg_temp.hours(4 + 30 * pg_temp.u('packed', order_id)) as packed_at,
        ordered_at + pg_temp.hours(36 + 40 * pg_temp.u('left', order_id)) as left_at,
        ordered_at + pg_temp.hours(80 + 90 * pg_temp.u('done', order_id)) as done_at
    from (
        select
            order_id,
            pg_temp.popular('buyer', order_id, pg_temp.size('customers')) as customer_id,
            -- Even shares: the shipments, whose number is given, must go round.
            case when order_id * 61 % 100 < 18 then 'pickup' else 'ship' end as fulfilment,
            pg_temp.u('cancelled', order_id) < 0.05 as is_cancelled,
            (day + pg_temp.hours(24 * (order_id - first_order + pg_temp.u('moment', order_id))
                / (last_order - first_order + 1))) at time zone 'UTC' as ordered_at
        from calendar
        cross join generate_series(first_order, last_order) order_id
        offset 0
    )
    offset 0
);

insert into customers
select
    id,
    case when id % 89 = 17 then '  ' || upper(name) || ' ' else name end,
    case
        when id % 97 = 11 then replace(mail, '@', ' at ')
        when id % 101 = 13 then ''
        when pg_temp.u('cust mail', id) < 0.97 then mail
    end,
    pg_temp.uuid('customer', id),
    case when pg_temp.u('cust phone', id) < 0.8
        then dial || ' ' || 1000000 + pg_temp.pick('cust number', id, 8999999) end,
    case when pg_temp.u('cust born', id) < 0.7
        then date '1940-01-01' + pg_temp.pick('cust birth', id, 24000)::int end,
    pg_temp.one('cust segment', id, array['retail', 'retail', 'retail', 'business', 'wholesale']),
    city,
    country,
    case when pg_temp.u('cust credit', id) < 0.4 then 500 * pg_temp.pick('cust limit', id, 40) end,
    floor(20000 * pg_temp.u('cust points', id) ^ 4),
    case when pg_temp.u('cust prefs', id) < 0.5 then jsonb_build_object('language', lower(country),
        'newsletter', id % 3 = 0, 'favourites', jsonb_build_array(id % 8, 'é')) end,
    case when pg_temp.u('cust calls', id) < 0.2 then make_time(8 + (id % 12), 15 * (id % 4), 0) end,
    case
        when pg_temp.u('cust ip', id) < 0.6
            then inet '203.0.113.0' + pg_temp.pick('cust host', id, 255)
        when pg_temp.u('cust ip', id) < 0.7
            then inet '2001:db8::' + pg_temp.pick('cust host', id, 4000000)
    end,
    case when pg_temp.u('cust asked', id) < 0.9 then pg_temp.u('cust consent', id) < 0.6 end,
    created_at,
    created_at + (pg_temp.opening() - created_at) * pg_temp.u('cust updated', id)
from (
    select
        id,
        places.*,
        pg_temp.one('cust given', id, given) || ' ' || pg_temp.one('cust family', id, family)
            as name,
        pg_temp.one('cust given', id, given_ascii) || '.'
            || pg_temp.one('cust family', id, family_ascii) || id || '@'
            || pg_temp.one('cust host', id, array['example.com', 'mail.example', 'example.org'])
            as mail,
        coalesce(
            first_order,
            timestamptz '2022-07-01 00:00Z' + pg_temp.hours(26000 * pg_temp.u('cust idle', id))
        ) - pg_temp.hours(0.1 + 4000 * pg_temp.u('cust since', id) ^ 3) as created_at
    from generate_series(1, pg_temp.size('customers')) id
    join places on place = pg_temp.pick('cust place', id, 12)
    left join (
        select customer_id, min(ordered_at) as first_order from sales group by customer_id
    ) on customer_id = id
    offset 0
)
order by id;

-- Every order has one line, and the remaining lines fall on orders by chance.
create temporary table baskets as
select order_id, 1 + coalesce(extra, 0) as lines,
    sum(1 + coalesce(extra, 0)) over (order by order_id) - 1 - coalesce(extra, 0) as lines_before
from generate_series(1, pg_temp.size('orders')) order_id
left join (
    select pg_temp.pick('line', i, pg_temp.size('orders'))::int as order_id, count(*)::int as extra
    from generate_series(1, pg_temp.size('order_details') - pg_temp.size('orders')) i
    group by 1
) using (order_id);

analyze sales;
analyze baskets;
analyze products;

insert into order_details
select
    id,
    order_id,
    product_id,
    quantity,
    unit_price,
    discount,
    round(quantity * unit_price * (1 - coalesce(discount, 0)), 2)
        + case when id % 4999 = 123 then 1.00 else 0 end,
    case when pg_temp.u('line note', id) < 0.003 then
        pg_temp.one('line text', id, array['gift wrap 🎁', 'bitte nicht knicken', '割れ物注意', '',
            'leave with neighbour 🙂']) end,
    ordered_at
from (
    select
        id,
        order_id,
        product_id,
        pg_temp.one('line quantity', id, array[1, 1, 1, 1, 1, 2, 2, 3, 4, 6, 10, 24]) as quantity,
        round(list_price * pg_temp.one('line price', id, array[0.90, 0.95, 0.98, 1, 1, 1, 1]), 2)
            * case when id % 3989 = 42 then 1000 else 1 end as unit_price,
        case when pg_temp.u('line discount', id) < 0.25 then
            pg_temp.one('line percent', id, array[0.05, 0.05, 0.1, 0.15, 0.25, 0.3333])
        end as discount,
        ordered_at
    from (
        select lines_before + line as id, order_id, ordered_at
        from (
            select * from baskets join sales using (order_id) order by order_id
        )
        cross join generate_series(1, lines) line
        offset 0
    )
    join products
        on product_id = pg_temp.popular('line product', id, pg_temp.size('products'))
    offset 0
);

analyze order_details;

insert into orders
select
    order_id,
    customer_id,
    'SO-' || extract(year from ordered_at) || '-' || lpad(order_id::text, 8, '0'),
    status,
    fulfilment,
    pg_temp.one('channel', order_id, array['web', 'web', 'app', 'store', 'phone']),
    ordered_at,
    case when pg_temp.u('required', order_id) < 0.2
        then (ordered_at at time zone 'UTC')::date + 10 end,
    case when status = 'delivered' then done_at end,
    pg_temp.one('currency', order_id, array['EUR', 'EUR', 'EUR', 'USD', 'GBP', 'JPY']),
    case when fulfilment = 'ship'
        then pg_temp.one('postage', order_id, array[0, 3.9, 4.9, 12.5]) else 0 end,
    total,
    pg_temp.u('gift', order_id) < 0.06,
    case when pg_temp.u('ip', order_id) < 0.7
        then inet '198.51.100.0' + pg_temp.pick('host', order_id, 255) end,
    case when pg_temp.u('order note', order_id) < 0.02 then
        pg_temp.one('order text', order_id, array['ring twice', 'Danke schön! 😊', '',
            'отдать соседям', 'alles Gute 🎂']) end,
    ordered_at,
    case status
        when 'cancelled' then packed_at when 'delivered' then done_at when 'shipped' then left_at
        when 'packed'
            then packed_at when 'paid' then ordered_at + interval '3 hours' else ordered_at
    end
from sales
join (
    select order_id, sum(line_total) as total from order_details group by order_id
) using (order_id)
order by order_id;

-- Every order that was sent has one parcel; what remains of the given number are second parcels.
insert into shipments
select
    row_number() over (order by left_at, order_id, parcel),
    order_id,
    pg_temp.popular('from', order_id, pg_temp.size('warehouses')),
    parcel,
    pg_temp.one('carrier', order_id, array['DHL', 'UPS', 'Poczta Polska', 'ヤマト運輸', 'Correos']),
    'T' || order_id || parcel || '-' || pg_temp.pick('tracking', order_id * 2 + parcel, 899999),
    0.1 + 0.001 * pg_temp.pick('parcel weight', order_id * 2 + parcel, 25000),
    3 + 0.01 * pg_temp.pick('parcel cost', order_id * 2 + parcel, 2500),
    left_at,
    (left_at at time zone 'UTC')::date + 4,
    case when status = 'delivered' then done_at end,
    pg_temp.u('signature', order_id) < 0.1,
    case when pg_temp.u('events', order_id) < 0.3 then jsonb_build_array(
        jsonb_build_object('at', left_at, 'what', 'collected'),
        jsonb_build_object('where', 'Köln')) end,
    left_at,
    case when status = 'delivered' then done_at else left_at end
from (
    select sales.*, parcel
    from sales
    cross join generate_series(1, 2) parcel
    where fulfilment = 'ship' and status in ('shipped', 'delivered')
    order by parcel, pg_temp.u('parcels', order_id), order_id
    limit pg_temp.size('shipments')
);

insert into returns
select
    row_number() over (order by returned_at, order_detail_id),
    order_detail_id,
    order_id,
    returned,
    (enum_range(null::return_reason))[pg_temp.pick('reason', order_detail_id, 5)],
    round(line_total * returned / quantity, 2),
    returned_at,
    processed_at,
    case when processed_at is not null then pg_temp.u('restocked', order_detail_id) < 0.7 end,
    case when pg_temp.u('says', order_detail_id) < 0.3 then
        pg_temp.one('comment', order_detail_id, array['kaputt 😡', '¡no funciona!',
            'サイズが違う', 'too small', '']) end,
    returned_at,
    coalesce(processed_at, returned_at)
from (
    select *, case when pg_temp.u('processed', order_detail_id) < 0.95
        then returned_at + least(interval '9 days', pg_temp.opening() - returned_at) * 0.7
    end as processed_at
    from (
        select
            order_details.*,
            pg_temp.pick('returned', order_detail_id, quantity) as returned,
            done_at + least(interval '21 days', pg_temp.opening() - done_at)
                * pg_temp.u('back', order_detail_id) as returned_at
        from order_details
        join sales using (order_id)
        where status = 'delivered'
        order by pg_temp.u('return', order_detail_id), order_detail_id
        limit pg_temp.size('returns')
    )
    offset 0
);
