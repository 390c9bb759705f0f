-- Keys, indexes and sequences. Added after the rows, which is many times faster.

alter table suppliers add primary key (supplier_id);
alter table warehouses add primary key (warehouse_id), add unique (code);
alter table products add primary key (product_id), add unique (sku);
alter table customers add primary key (customer_id), add unique (customer_uuid);
alter table orders add primary key (order_id);
alter table order_details add primary key (order_detail_id);
alter table shipments add primary key (shipment_id);
alter table returns add primary key (return_id), add unique (order_detail_id);
alter table inventory add primary key (inventory_id), add unique (product_id, warehouse_id);
alter table stock_levels add primary key (stock_level_id), add unique (product_id, warehouse_id);

create index on products (supplier_id);
create index on orders (customer_id);
create index on orders (ordered_at);
create index on order_details (order_id);
create index on shipments (order_id);
create index on returns (order_id);

alter table products add foreign key (supplier_id) references suppliers;
alter table orders add foreign key (customer_id) references customers;
alter table order_details
    add foreign key (order_id) references orders,
    add foreign key (product_id) references products;
alter table shipments
    add foreign key (order_id) references orders,
    add foreign key (warehouse_id) references warehouses;
alter table returns
    add foreign key (order_detail_id) references order_details,
    add foreign key (order_id) references orders;
alter table inventory
    add foreign key (product_id) references products,
    add foreign key (warehouse_id) references warehouses;
alter table stock_levels
    add foreign key (product_id) references products,
    add foreign key (warehouse_id) references warehouses;

select setval('suppliers_supplier_id_seq', max(supplier_id)) from suppliers;
select setval('warehouses_warehouse_id_seq', max(warehouse_id)) from warehouses;
select setval('products_product_id_seq', max(product_id)) from products;
select setval('customers_customer_id_seq', max(customer_id)) from customers;
select setval('orders_order_id_seq', max(order_id)) from orders;
select setval('order_details_order_detail_id_seq', max(order_detail_id)) from order_details;
select setval('shipments_shipment_id_seq', max(shipment_id)) from shipments;
select setval('returns_return_id_seq', max(return_id)) from returns;
select setval('inventory_inventory_id_seq', max(inventory_id)) from inventory;
select setval('stock_levels_stock_level_id_seq', max(stock_level_id)) from stock_levels;
