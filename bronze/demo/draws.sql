-- Functions for random values. The caller creates pg_temp.seed(), pg_temp.size(table) and
-- pg_temp.opening() (the midnight at which the data ends).
-- Every value is a hash of the seed, a name and a row number, so the same seed gives the same data.

create function pg_temp.u(draw text, id bigint) returns float8 language sql immutable parallel safe
return (hashint8extended(id, hashtextextended(draw, pg_temp.seed())) & 9007199254740991)
    / 9007199254740992.0::float8;

create function pg_temp.pick(draw text, id bigint, n bigint) returns bigint
language sql immutable parallel safe
return 1 + floor(pg_temp.u(draw, id) * n)::bigint;

create function pg_temp.one(draw text, id bigint, options anyarray) returns anyelement
language sql immutable parallel safe
as 'select options[1 + floor(pg_temp.u(draw, id) * cardinality(options))::int]';

create function pg_temp.uuid(draw text, id bigint) returns uuid language sql immutable parallel safe
return md5(draw || ':' || pg_temp.seed() || ':' || id)::uuid;

-- Rank r of n is drawn with a frequency of about r^(-2/3), similar to Zipf's law. The prime
-- distributes the ranks over the numbers, so that popular rows are not the oldest ones.
create function pg_temp.popular(draw text, id bigint, n bigint) returns bigint
language sql immutable parallel safe
return 1 + floor(n * pg_temp.u(draw, id) * pg_temp.u(draw, id) * pg_temp.u(draw, id))::bigint
    * 15485863 % n;

create function pg_temp.hours(float8) returns interval language sql immutable parallel safe
return make_interval(secs => floor($1 * 3600));

create function pg_temp.price(draw text, id bigint) returns numeric
language sql immutable parallel safe
return floor(1 + 900 * pg_temp.u(draw, id) ^ 4)::numeric + 0.99;

create temporary table places (
    place int, city text, country char(2), dial text, zone text,
    given text[], family text[], given_ascii text[], family_ascii text[]
);

insert into places values
(1, 'München', 'DE', '+49', 'Europe/Berlin',
    '{Jürgen,Anke,Sören,Käthe}', '{Müller,Weiß,Schröder,Groß}',
    '{juergen,anke,soeren,kaethe}', '{mueller,weiss,schroeder,gross}'),
(2, 'Łódź', 'PL', '+48', 'Europe/Warsaw',
    '{Łukasz,Małgorzata,Paweł,Żaneta}', '{Wójcik,Kowalska,Śliwiński,Dąbrowska}',
    '{lukasz,malgorzata,pawel,zaneta}', '{wojcik,kowalska,sliwinski,dabrowska}'),
(3, 'La Coruña', 'ES', '+34', 'Europe/Madrid',
    '{Íñigo,Begoña,José,Lucía}', '{Núñez,Peña,García,Ibáñez}',
    '{inigo,begona,jose,lucia}', '{nunez,pena,garcia,ibanez}'),
(4, 'Αθήνα', 'GR', '+30', 'Europe/Athens',
    '{Γιώργος,Ελένη,Νίκος,Σοφία}', '{Παπαδόπουλος,Γεωργίου,Οικονόμου,Δημητρίου}',
    '{giorgos,eleni,nikos,sofia}', '{papadopoulos,georgiou,oikonomou,dimitriou}'),
(5, '東京', 'JP', '+81', 'Asia/Tokyo',
    '{太郎,花子,健一,美咲}', '{山田,佐藤,鈴木,高橋}',
    '{taro,hanako,kenichi,misaki}', '{yamada,sato,suzuki,takahashi}'),
(6, 'Київ', 'UA', '+380', 'Europe/Kyiv',
    '{Олена,Тарас,Юлія,Богдан}', '{Шевченко,Коваленко,Бойко,Ткаченко}',
    '{olena,taras,yuliia,bohdan}', '{shevchenko,kovalenko,boiko,tkachenko}'),
(7, 'القاهرة', 'EG', '+20', 'Africa/Cairo',
    '{محمد,فاطمة,أحمد,ليلى}', '{حسن,إبراهيم,منصور,السيد}',
    '{mohamed,fatma,ahmed,layla}', '{hassan,ibrahim,mansour,elsayed}'),
(8, 'Montréal', 'CA', '+1', 'America/Toronto',
    '{François,Zoé,Benoît,Chloé}', '{Lefèvre,Côté,Gagné,Bélanger}',
    '{francois,zoe,benoit,chloe}', '{lefevre,cote,gagne,belanger}'),
(9, 'Leeds', 'GB', '+44', 'Europe/London',
    '{Sarah,James,Aoife,Oliver}', '{Smith,O''Brien,Taylor,Evans-Jones}',
    '{sarah,james,aoife,oliver}', '{smith,obrien,taylor,evans-jones}'),
(10, 'दिल्ली', 'IN', '+91', 'Asia/Kolkata',
    '{आरव,प्रिया,रोहन,अनन्या}', '{शर्मा,वर्मा,गुप्ता,सिंह}',
    '{aarav,priya,rohan,ananya}', '{sharma,verma,gupta,singh}'),
(11, 'İzmir', 'TR', '+90', 'Europe/Istanbul',
    '{Çağla,Ömer,Şule,Işık}', '{Yılmaz,Öztürk,Şahin,Doğan}',
    '{cagla,omer,sule,isik}', '{yilmaz,ozturk,sahin,dogan}'),
(12, 'Chicago', 'US', '+1', 'America/Chicago',
    '{Emily,Marcus,Grace,Noah}', '{Johnson,Lee,Martinez,Brown}',
    '{emily,marcus,grace,noah}', '{johnson,lee,martinez,brown}');
