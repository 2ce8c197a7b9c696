// Every address in both themes and on a small screen: no serious fault of accessibility, nothing that jumps while it
// is loaded, no error, nothing foreign.
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { ADMIN, HOLDER, browser, open, overflow, service, settled, shifted, shot, unaccessible } from './harness.mjs'

/** Cumulative layout shift; 0.1 is what is called good. */
const MOST_SHIFTED = 0.1

let chrome
let running
let routes
before(async () => {
  running = await service()
  chrome = await browser()
  const { api } = running
  const mia = await api.user(HOLDER)
  for (let n = 0; n < 8; n++) await api.user({ email: `user${n}@example.com`, name: `User ${n}` })
  const codes = Array.from({ length: 400 }, (_, n) => `SUMMER-${String(n * 7919).padStart(7, '0')}`)
  const book = await api.book({ name: 'Summer campaign', description: 'For everybody who came in spring.', max_assignments_per_user: 50 }, codes)
  const long = await api.book({ name: `A very long name ${'of a book '.repeat(15)}`, status: 'draft' }, ['x'.repeat(100), '=cmd', 'x'.repeat(100)])
  await api.assign(book.id, mia.id, 12)
  const held = (await api.send('GET', `/v1/users/${mia.id}/coupons`)).data.map((coupon) => coupon.code)
  for (const code of held.slice(0, 3)) {
    const lock = await api.send('POST', `/v1/coupons/lock/${code}`, { book_id: book.id })
    await api.send('POST', `/v1/coupons/redeem/${code}`, { book_id: book.id, lock_token: lock.lock_token })
  }
  await api.send('POST', `/v1/coupons/lock/${held[4]}`, { book_id: book.id })
  await api.send('POST', `/v1/coupons/void/${held[5]}`, { book_id: book.id, reason: 'printed twice' })
  const jobs = (await api.send('GET', '/v1/jobs?kind=import')).data
  const bad = jobs.find((job) => job.state === 'partially_succeeded') ?? jobs[0]
  const pool = await api.send('POST', '/v1/pools', { name: 'Newsletter' })
  await api.send('POST', `/v1/pools/${pool.id}/members`, { user_ids: [mia.id] })
  await api.send('POST', '/v1/distributions', { book_id: book.id, pool_id: pool.id, mode: 'equal', per_user: 2, on_shortage: 'fail' }, { prefer: 'wait=30' })
  const distribution = (await api.send('GET', '/v1/distributions')).data[0]
  const schedule = await api.send('POST', '/v1/schedules', { name: 'Every Monday', kind: 'export', export: { kind: 'coupons', book_id: book.id }, cron: '0 9 * * 1', time_zone: 'Europe/Paris' })
  // The sums over time come some seconds behind, and the picture of the overview is to show them.
  while (process.env.SCREENSHOTS && !(await api.send('GET', '/v1/stats')).points.at(-1)?.redeemed) await new Promise((resolve) => setTimeout(resolve, 500))
  routes = {
    overview: '/', books: '/books', 'new-book': '/books/new', 'new-book-generate': '/books/new?codes=generate', book: `/books/${book.id}`, 'long-book': `/books/${long.id}`, 'edit-book': `/books/${book.id}/edit`,
    'import-choose': `/books/${book.id}/import`, generate: `/books/${book.id}/generate`, coupon: `/books/${book.id}/coupons/${held[0]}`,
    pools: '/pools', pool: `/pools/${pool.id}`, distributions: '/distributions', distribution: `/distributions/${distribution.id}`, distribute: `/distributions/new?book=${book.id}`,
    schedules: '/schedules', 'new-schedule': '/schedules/new', schedule: `/schedules/${schedule.id}`, jobs: '/jobs', job: `/jobs/${bad.id}`, audit: '/audit', users: '/settings/users', 'api-keys': '/settings/api-keys', webhooks: '/settings/webhooks',
    as: `/as/${mia.id}`, 'as-used': `/as/${mia.id}?show=used`, account: '/account', nowhere: '/nowhere/at/all',
  }
})
after(async () => {
  await chrome?.close()
  await running?.stop()
})

// Side by side: most of the time is waiting for pages to become quiet.
describe('every route of an administrator', { concurrency: true }, () => {
  for (const [look, options] of [['light', {}], ['dark', { dark: true }], ['360', { width: 360, height: 740 }]]) {
    test(look, async () => {
      const { page, signIn, check } = await open(chrome, running, options)
      await page.goto('/sign-in')
      await page.getByLabel('E-mail').waitFor()
      assert.deepEqual(await unaccessible(page), [], 'sign-in')
      await shot(page, `sign-in-${look}`)
      await signIn(ADMIN)
      const found = {}
      let furthest = 0
      for (const [name, address] of Object.entries(routes)) {
        await page.goto(address)
        await settled(page)
        const moved = await shifted(page)
        const faults = await unaccessible(page)
        if ((await overflow(page)) > 0) faults.push(`wider than the screen by ${await overflow(page)} px`)
        if (moved > MOST_SHIFTED) faults.push(`moved by ${moved.toFixed(3)} while it was loaded`)
        furthest = Math.max(furthest, moved)
        if (faults.length) found[name] = faults
        await shot(page, `${name}-${look}`)
      }
      console.log(`# ${look}: what is drawn moves by ${furthest.toFixed(3)} at most (cumulative layout shift)`)
      assert.deepEqual(found, {})
      check()
    })
  }
})

test('a page is served with a strict policy, its files for ever', async () => {
  const page = await fetch(`${running.url}/books`, { headers: { accept: 'text/html' } })
  assert.match(page.headers.get('content-security-policy'), /default-src 'none'; script-src 'self';/)
  assert.equal(page.headers.get('cache-control'), 'no-cache')
  const script = /src="(\/assets\/[^"]+\.js)"/.exec(await page.text())[1]
  const file = await fetch(running.url + script, { headers: { 'accept-encoding': 'br' } })
  assert.deepEqual([file.headers.get('cache-control'), file.headers.get('content-encoding')], ['public, max-age=31536000, immutable', 'br'])
  assert.equal((await fetch(`${running.url}/v1/nothing`, { headers: { accept: 'text/html' } })).status, 404)
})
