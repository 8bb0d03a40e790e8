-- Claims a value by all of its search tokens until the transaction ends: whoever claims one of them, too, waits. All in
-- one order, so that claims of several values do not deadlock. UNIQUE.md says how writers use it.
create function fieldkeep.fe_claim(tokens text[]) returns void language plpgsql volatile as $$
declare
  key bigint;
begin
  -- An older snapshot would not show what the transaction that held the claim before has written.
  if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
    raise exception 'fe_claim needs read committed, this transaction is %', current_setting('transaction_isolation')
      using errcode = 'invalid_transaction_state';
  end if;
  for key in select distinct pg_catalog.hashtextextended(token, 0) from pg_catalog.unnest(tokens) token
             where token is not null order by 1 loop
    perform pg_catalog.pg_advisory_xact_lock(key);
  end loop;
end $$;

grant execute on function fieldkeep.fe_claim(text[]) to public;
