-- One day of business, continued: orders, shipments, returns, and their changes of the stock.

-- orders: update
-- Most open orders get their next status; one in twenty of the pending ones is cancelled.
update orders
set
    status = case
        when status = 'pending' and pg_temp.u('cancel', order_id) < 0.05 then 'cancelled'
        when status = 'pending' then 'paid'
        when status = 'paid' then 'packed'
        when status = 'packed' and fulfilment = 'ship' then 'shipped'
        else 'delivered'
    end::order_status,
    delivered_at = case
        when status = 'shipped' or status = 'packed' and fulfilment = 'pickup'
            then pg_temp.at('order', order_id)
    end,
    updated_at = pg_temp.at('order', order_id)
where status in ('pending', 'paid', 'packed', 'shipped') and pg_temp.u('step', order_id) < 0.8
returning order_id;

-- shipments: insert
insert into shipments (
    order_id, warehouse_id, parcel, carrier, tracking_number, weight_kg, cost, shipped_at,
    expected_on, signature_required, created_at, updated_at
)
select
    order_id, pg_temp.pick('from', order_id, (select count(*) from warehouses)), 1, 'DHL',
    'T' || order_id || '1-' || pg_temp.pick('tracking', order_id, 899999),
    0.1 + 0.001 * pg_temp.pick('parcel weight', order_id, 25000), 6.90, updated_at,
    (updated_at at time zone 'UTC')::date + 4, false, updated_at, updated_at
from orders
where status = 'shipped'
    and not exists (select from shipments where shipments.order_id = orders.order_id)
order by order_id
returning shipment_id;

-- shipments: update
update shipments
set delivered_at = orders.delivered_at, updated_at = orders.delivered_at
from orders
where orders.order_id = shipments.order_id
    and orders.delivered_at >= pg_temp.opening()
    and shipments.delivered_at is null
returning shipment_id;

-- shipments: delete
-- Second labels of a parcel, printed by mistake.
delete from shipments
where shipment_id in (
    select shipment_id
    from shipments
    where parcel = 2
    order by shipped_at desc, shipment_id
    limit 1 + pg_temp.size('day') / 100
)
returning shipment_id;

-- order_details: update
-- A customer orders one more item before the order is packed.
update order_details
set
    quantity = quantity + 1,
    line_total = round((quantity + 1) * unit_price * (1 - coalesce(discount, 0)), 2),
    updated_at = pg_temp.at('more', order_detail_id)
where order_detail_id in (
    select min(order_detail_id)
    from orders
    join order_details using (order_id)
    where status in ('pending', 'paid')
    group by order_id
    order by pg_temp.u('more', order_id), order_id
    limit 1 + pg_temp.size('day') / 20
)
returning order_detail_id;

-- order_details: delete
-- A customer removes a line of an order with several.
delete from order_details
where order_detail_id in (
    select max(order_detail_id)
    from orders
    join order_details using (order_id)
    where status in ('pending', 'paid')
    group by order_id
    having count(*) > 1
    order by pg_temp.u('less', order_id), order_id
    limit 1 + pg_temp.size('day') / 40
)
returning order_detail_id;

-- orders: update
update orders
set total_amount = total, updated_at = pg_temp.at('total', order_id)
from (
    select order_details.order_id as id, sum(line_total) as total
    from orders
    join order_details using (order_id)
    where status in ('pending', 'paid')
    group by order_details.order_id
)
where order_id = id and total_amount <> total
returning order_id;

-- day: prepare
create temporary table new_lines as
select
    order_id,
    nextval(pg_get_serial_sequence('order_details', 'order_detail_id')) as order_detail_id,
    product_id,
    quantity,
    list_price as unit_price,
    discount,
    round(quantity * list_price * (1 - coalesce(discount, 0)), 2) as line_total
from (
    select
        order_id,
        line,
        pg_temp.popular('product', i * 10 + line, (select count(*) from products)) as wanted,
        pg_temp.pick('quantity', i * 10 + line, 6)::int as quantity,
        case when pg_temp.u('discount', i * 10 + line) < 0.25 then 0.1000 end as discount
    from (
        select i, nextval(pg_get_serial_sequence('orders', 'order_id'))::int as order_id
        from generate_series(1, pg_temp.size('day')) i
        offset 0
    )
    cross join generate_series(1, pg_temp.pick('lines', i, 7)) line
)
join products on product_id = wanted
order by order_id, line;

-- orders: insert
insert into orders (
    order_id, customer_id, order_number, status, fulfilment, channel, ordered_at, currency,
    shipping_cost, total_amount, is_gift, note, created_at, updated_at
)
select
    order_id, customer_id,
    'SO-' || extract(year from pg_temp.opening()) || '-' || lpad(order_id::text, 8, '0'),
    'pending', case when order_id % 6 = 0 then 'pickup' else 'ship' end, 'web', ordered_at, 'EUR',
    case when order_id % 6 = 0 then 0 else 4.90 end, total, order_id % 17 = 0,
    case when order_id % 50 = 0 then 'Merci 🙏' end, ordered_at, ordered_at
from (
    select
        order_id,
        greatest(pg_temp.at('ordered', order_id), customers.created_at) as ordered_at,
        customer_id,
        total
    from (
        select
            order_id,
            sum(line_total) as total,
            pg_temp.popular('buyer', order_id, (select count(*) from customers)) as place_in_line
        from new_lines
        group by order_id
    )
    join (
        select customer_id, created_at, row_number() over (order by customer_id) as place_in_line
        from customers
    ) customers using (place_in_line)
)
order by order_id
returning order_id;

-- order_details: insert
insert into order_details (
    order_detail_id, order_id, product_id, quantity, unit_price, discount, line_total, updated_at
)
select
    order_detail_id, order_id, product_id, quantity, unit_price, discount, line_total,
    orders.ordered_at
from new_lines
join orders using (order_id)
order by order_detail_id
returning order_detail_id;

-- day: prepare
-- Changes of the stock: sold products are reserved in the warehouse with most of them, and products
-- that run out are restocked. The outliers of inventory.sql are not changed.
create temporary table moves as
select inventory_id, product_id, warehouse_id, reserved, restocked
from (
    select distinct on (product_id)
        inventory_id, product_id, warehouse_id, sold as reserved, 0 as restocked
    from inventory
    join (
        select product_id, sum(quantity)::int as sold from new_lines group by product_id
    ) using (product_id)
    where quantity_available < 1000000
    order by product_id, quantity_available desc, inventory_id
)
union all
(
    select inventory_id, product_id, warehouse_id, 0, 150
    from inventory
    where quantity_available between 0 and 9
        and not exists (select from new_lines where new_lines.product_id = inventory.product_id)
    order by pg_temp.u('restock', inventory_id), inventory_id
    limit 2 + pg_temp.size('day') / 4
);

-- inventory: update
update inventory
set
    quantity_available = quantity_available - reserved + restocked,
    restocked_at = case
        when restocked > 0 then pg_temp.at('stock', moves.inventory_id)
        else restocked_at
    end,
    updated_at = greatest(pg_temp.at('stock', moves.inventory_id), created_at)
from moves
where moves.inventory_id = inventory.inventory_id
returning inventory.inventory_id;

-- stock_levels: update
update stock_levels
set
    quantity_on_hand = quantity_on_hand + restocked,
    quantity_reserved = quantity_reserved + reserved,
    updated_at = greatest(pg_temp.at('stock', inventory_id), created_at)
from moves
where moves.product_id = stock_levels.product_id
    and moves.warehouse_id = stock_levels.warehouse_id
returning stock_level_id;

-- stock_levels: delete
-- Discontinued products are removed from the stock.
delete from stock_levels
where stock_level_id in (
    select stock_level_id
    from stock_levels
    join products using (product_id)
    where not is_active
    order by stock_level_id
    limit 1 + pg_temp.size('day') / 50
)
returning stock_level_id;

-- inventory: delete
delete from inventory
where not exists (
    select
    from stock_levels
    where stock_levels.product_id = inventory.product_id
        and stock_levels.warehouse_id = inventory.warehouse_id
)
returning inventory_id;

-- returns: update
update returns
set
    processed_at = pg_temp.at('processed', return_id),
    is_restocked = pg_temp.u('restocked', return_id) < 0.7,
    updated_at = pg_temp.at('processed', return_id)
where return_id in (
    select return_id
    from returns
    where processed_at is null
    order by returned_at, return_id
    limit 1 + pg_temp.size('day') / 10
)
returning return_id;

-- returns: delete
-- Returns that customers withdrew.
delete from returns
where return_id in (
    select return_id
    from returns
    where processed_at is null
    order by returned_at desc, return_id
    limit 1 + pg_temp.size('day') / 100
)
returning return_id;

-- returns: insert
insert into returns (
    order_detail_id, order_id, quantity, reason, refund_amount, returned_at, created_at, updated_at
)
select
    order_detail_id, order_id, 1, 'changed mind', round(line_total / quantity, 2), returned_at,
    returned_at, returned_at
from (
    select
        order_details.*,
        greatest(
            pg_temp.at('returned', order_detail_id), delivered_at + interval '1 hour'
        ) as returned_at
    from orders
    join order_details using (order_id)
    where status = 'delivered'
        and ordered_at >= pg_temp.opening() - interval '30 days'
        and not exists (
            select from returns where returns.order_detail_id = order_details.order_detail_id
        )
    order by pg_temp.u('return', order_detail_id), order_detail_id
    limit 1 + pg_temp.size('day') / 10
)
order by order_detail_id
returning return_id;

-- order_details: delete
-- The papers of the oldest cancelled orders are thrown away.
delete from order_details
where order_id in (
    select order_id
    from orders
    where status = 'cancelled'
    order by ordered_at, order_id
    limit 1 + pg_temp.size('day') / 20
)
returning order_detail_id;

-- orders: delete
delete from orders
where order_id in (
    select order_id
    from orders
    where status = 'cancelled'
    order by ordered_at, order_id
    limit 1 + pg_temp.size('day') / 20
)
returning order_id;
