// Every screen in every state that somebody may meet it in: empty, being loaded, not answered, with more than it was
// drawn for. Each has to say honestly what is the matter, and to fit a small phone. With SCREENSHOTS naming a directory
// the pictures are laid there, in both themes too, to be looked at.
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { ADMIN, HOLDER, browser, open, overflow, service, settled, shot } from './harness.mjs'

const PHONE = ['360', { width: 360, height: 740 }]
const LOOKS = process.env.SCREENSHOTS?.includes('/') ? [PHONE, ['light', {}], ['dark', { dark: true }]] : [PHONE]
const A_LONG_NAME = 'A name that nobody has cut, since somebody pasted the subject of a whole campaign into it: '.padEnd(200, 'spring and summer sale for the friends of the house ')
const ONE_LONG_WORD = 'Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft'.repeat(2)
const LONG_USER = { email: `${'a.very.long.address.of.somebody'.padEnd(64, '.x').slice(0, 63)}@${'department.'.repeat(14)}example.com`, name: ONE_LONG_WORD, password: 'another-long-phrase' }
const BIG = 987_654_321

let chrome
let fresh // nothing in it but an administrator
let full // with everything, all of it long
before(async () => {
  ;[chrome, fresh, full] = await Promise.all([browser(), service(), service()])
  await Promise.all([prepareFresh(), prepareFull()])
})
after(async () => {
  await chrome?.close()
  await Promise.all([fresh?.stop(), full?.stop()])
})

/** What is not a list needs one thing to show; it is as empty as can be. */
async function prepareFresh() {
  const { api } = fresh
  fresh.holder = await api.user(HOLDER)
}

async function prepareFull() {
  const { api } = full
  const holder = await api.user(LONG_USER)
  await Promise.all(Array.from({ length: 30 }, (_, n) => api.user({ email: `user${n}@example.com`, name: n % 3 ? `User ${n}` : `${n} ${A_LONG_NAME}`.slice(0, 200) })))
  const codes = Array.from({ length: 250 }, (_, n) => (n % 2 ? `SUMMER-${String(n).padStart(5, '0')}` : `${String(n).padStart(4, '0')}${'ABCDEFGHJK'.repeat(10)}`.slice(0, 100)))
  const book = await api.book({ name: A_LONG_NAME, description: `${A_LONG_NAME} ${ONE_LONG_WORD}`, max_assignments_per_user: 1_000_000, redemptions_per_coupon: 1_000, starts_at: '2026-01-01T00:00:00Z', ends_at: '2031-12-31T00:00:00Z', valid_days_after_assignment: 3_650 }, [...codes, 'x y', '☃'.repeat(60)])
  await Promise.all(Array.from({ length: 25 }, (_, n) => api.book({ name: n % 2 ? `Book ${n}` : `${n} ${ONE_LONG_WORD}`, status: ['active', 'draft', 'paused', 'archived'][n % 4] })))
  await api.assign(book.id, holder.id, 20)
  const held = (await api.send('GET', `/v1/users/${holder.id}/coupons`)).data.map((coupon) => coupon.code).sort()
  for (const code of held.slice(0, 4)) {
    const lock = await api.send('POST', `/v1/coupons/lock/${code}`, { book_id: book.id })
    if (code !== held[3]) await api.send('POST', `/v1/coupons/redeem/${code}`, { book_id: book.id, lock_token: lock.lock_token })
  }
  await api.send('POST', `/v1/coupons/void/${held[5]}`, { book_id: book.id, reason: A_LONG_NAME })
  const pool = await api.send('POST', '/v1/pools', { name: A_LONG_NAME, description: ONE_LONG_WORD })
  await Promise.all(Array.from({ length: 12 }, (_, n) => api.send('POST', '/v1/pools', { name: n % 2 ? `Pool ${n}` : `${n} ${ONE_LONG_WORD}` })))
  const users = (await api.send('GET', '/v1/users?limit=100')).data
  await api.send('POST', `/v1/pools/${pool.id}/members`, { user_ids: users.map((user) => user.id) })
  const job = await api.send('POST', '/v1/distributions', { book_id: book.id, pool_id: pool.id, mode: 'equal', per_user: 3, on_shortage: 'partial' }, { prefer: 'wait=30' })
  const distribution = (await api.send('GET', '/v1/distributions')).data[0]
  const task = { kind: 'distribution', distribution: { book_id: book.id, pool_id: pool.id, mode: 'equal', per_user: 3, on_shortage: 'partial' } }
  const schedule = await api.send('POST', '/v1/schedules', { name: A_LONG_NAME, ...task, cron: '1,2,3,4,5,6,7,8,9,10,11,12,13,14,15 9-17 1-28 1,3,5,7,9,11 1-5', time_zone: 'America/Argentina/ComodRivadavia' })
  await api.send('POST', '/v1/schedules', { name: ONE_LONG_WORD, kind: 'export', export: { kind: 'coupons', book_id: book.id }, run_at: '2031-01-01T00:00:00Z', paused: true })
  await api.send('POST', '/v1/api-keys', { name: A_LONG_NAME, scopes: ['read', 'assign', 'redeem', 'manage'] })
  await api.send('POST', '/v1/api-keys', { name: 'Till 3', scopes: ['redeem'], expires_at: '2031-01-01T00:00:00Z' })
  const bad = (await api.send('GET', '/v1/jobs?state=partially_succeeded')).data[0] ?? job
  Object.assign(full, { holder, book, pool, code: held[0], distribution, schedule, bad })
}

/** Addresses by the state of the service; `still` is what asks the service for nothing before somebody types. */
const everyList = { books: '/books', pools: '/pools', distributions: '/distributions', schedules: '/schedules', jobs: '/jobs', audit: '/audit', users: '/settings/users', 'api-keys': '/settings/api-keys', webhooks: '/settings/webhooks' }
const things = ({ book, pool, code, distribution, schedule, bad, holder }) => ({
  overview: '/', ...everyList, book: `/books/${book.id}`, 'edit-book': `/books/${book.id}/edit`, import: `/books/${book.id}/import`, generate: `/books/${book.id}/generate`, coupon: `/books/${book.id}/coupons/${encodeURIComponent(code)}`,
  pool: `/pools/${pool.id}`, distribute: `/distributions/new?book=${book.id}&pool=${pool.id}`, distribution: `/distributions/${distribution.id}`, schedule: `/schedules/${schedule.id}`, job: `/jobs/${bad.id}`, as: `/as/${holder.id}`,
})
const STILL = { 'new-book': '/books/new', 'new-book-generate': '/books/new?codes=generate', 'new-schedule': '/schedules/new', account: '/account', nowhere: '/nowhere/at/all' }

/** Requests that a screen makes for what it shows; who is signed in is asked before there is a screen. */
const isContent = (url) => !/\/v1\/(me$|auth\/|setup)/.test(url.pathname) && url.pathname.startsWith('/v1/')

/** Runs through addresses in the looks that are wanted, and collects what is wrong with each. */
function through(state, running, addresses, look) {
  describe(state, { concurrency: true }, () => {
    for (const [name, options] of LOOKS) {
      test(name, async () => {
        const opened = await open(chrome, running(), { ...options, allow: [/status of 500|ERR_CONNECTION/] })
        await opened.signIn(ADMIN)
        const found = {}
        for (const [screen, address] of Object.entries(addresses())) {
          try {
            await look(opened.page, address, () => shot(opened.page, `${screen}-${state}-${name}`, true))
            if ((await overflow(opened.page)) > 0) found[screen] = `wider than the screen by ${await overflow(opened.page)} px`
          } catch (error) {
            found[screen] = error.message.split('\n').slice(0, 2).join(' ')
            await shot(opened.page, `${screen}-${state}-${name}-WRONG`, true)
          }
        }
        assert.deepEqual(found, {})
        opened.check()
        await opened.context.close()
      })
    }
  })
}

through('empty', () => fresh, () => ({ overview: '/', ...everyList, distribute: '/distributions/new', as: `/as/${fresh.holder.id}`, ...STILL }), async (page, address, look) => {
  await page.goto(address)
  await settled(page)
  await look()
  assert.equal(await page.getByRole('alert').count(), 0, 'nothing is wrong with an empty service')
  // A list says what it would hold and offers the next thing to do.
  if (Object.values(everyList).includes(address) && !/users|jobs|audit|webhooks/.test(address)) {
    await page.locator('.empty').getByRole('button').or(page.locator('.empty').getByRole('link')).first().waitFor()
  }
})

through('loading', () => full, () => things(full), async (page, address, look) => {
  const held = []
  await page.route(isContent, (route) => held.push(route))
  await page.goto(address, { waitUntil: 'domcontentloaded' })
  await page.locator('main [aria-busy=true]').first().waitFor()
  await page.waitForTimeout(250) // placeholders appear a moment late, so that quick answers do not flicker
  await look()
  assert.equal(await page.getByRole('alert').count(), 0)
  await page.unroute(isContent)
  await Promise.all(held.map((route) => route.continue().catch(() => {})))
  await page.locator('main [aria-busy=true]').first().waitFor({ state: 'detached' })
})

through('error', () => full, () => things(full), async (page, address, look) => {
  const problem = { type: 'about:blank', title: 'Internal error', status: 500, code: 'internal', detail: 'Something unforeseen happened.', request_id: '019a0000-0000-7000-8000-000000000000' }
  const refuse = (route) => route.fulfill({ status: 500, contentType: 'application/problem+json', body: JSON.stringify(problem) })
  await page.route(isContent, refuse)
  await page.goto(address)
  const again = page.getByRole('main').getByRole('button', { name: 'Try again' }).first()
  await again.waitFor()
  await page.getByText(problem.request_id).first().waitFor()
  await look()
  await page.unroute(isContent, refuse)
  // One press for each part of the screen; what asks again by itself may have been quicker.
  const alerts = page.getByRole('main').getByRole('alert')
  for (let quiet = 0; quiet < 3; quiet = (await alerts.count()) ? 0 : quiet + 1) {
    if (await again.count()) await again.click({ timeout: 1_000 }).catch(() => {})
    await page.waitForLoadState('networkidle').catch(() => {})
  }
})

through('long', () => full, () => things(full), async (page, address, look) => {
  const enlarge = async (route) => {
    const response = await route.fetch().catch(() => null)
    if (!response?.ok()) return response ? route.fulfill({ response }) : route.abort().catch(() => {})
    return route.fulfill({ response, json: enlarged(await response.json().catch(() => ({}))) }).catch(() => {})
  }
  const counted = (url) => /^\/v1\/.*(stats|counts|history|distributions)/.test(url.pathname)
  await page.route(counted, enlarge)
  await page.goto(address)
  await settled(page)
  await look()
  assert.equal(await page.getByRole('main').getByRole('alert').count(), 0)
  await page.unroute(counted, enlarge)
})

const COUNTS = ['total', 'unassigned', 'assigned', 'redeemed', 'locked', 'void', 'redemptions', 'members', 'recipients', 'codes_free', 'codes_needed', 'succeeded', 'failed']
function enlarged(value) {
  if (Array.isArray(value)) return value.map(enlarged)
  if (value === null || typeof value !== 'object') return value
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, COUNTS.includes(name) && Number.isInteger(inner) && inner > 0 ? BIG : enlarged(inner)]))
}

test('a service that cannot be reached says so, and comes back by a press', async () => {
  const { page, signIn, check } = await open(chrome, full, { width: 360, height: 740, allow: [/ERR_CONNECTION/] })
  await signIn(ADMIN)
  const cut = (route) => route.abort('connectionreset')
  await page.route(isContent, cut)
  for (const address of ['/', '/books', `/books/${full.book.id}`]) {
    await page.goto(address)
    await page.getByRole('main').getByText('The connection failed before an answer came.').first().waitFor()
    assert.equal(await overflow(page), 0)
  }
  await shot(page, 'book-unreachable-360', true)
  await page.unroute(isContent, cut)
  await page.getByRole('button', { name: 'Try again' }).first().click()
  await page.getByRole('heading', { name: /^A name that nobody/ }).waitFor()
  check()
})

describe('who is not signed in', () => {
  for (const [name, options] of LOOKS) {
    test(name, async () => {
      const { page, check } = await open(chrome, full, { ...options, allow: [/status of 500|401|403|422/] })
      await page.goto('/sign-in')
      await page.getByLabel('E-mail').waitFor()
      await shot(page, `sign-in-empty-${name}`, true)
      await page.getByLabel('E-mail').fill(LONG_USER.email)
      await page.getByLabel('Password').fill('not the right one')
      await page.getByRole('button', { name: 'Sign in' }).click()
      await page.getByText('E-mail and password do not fit').waitFor()
      await shot(page, `sign-in-error-${name}`, true)
      assert.equal(await overflow(page), 0)
      // As a service would look that nobody has set up; a real one is in the test of the first start.
      let refusal
      await page.route('**/v1/setup', (route) => (route.request().method() === 'GET' ? route.fulfill({ json: { needed: true } }) : route.fulfill(refusal ?? { status: 500, json: { code: 'internal', status: 500, title: 'x', request_id: 'one' } })))
      await page.goto('/setup#token=cbs_0123456789')
      await page.getByLabel('Name').fill(ONE_LONG_WORD)
      await page.getByLabel('E-mail').fill(LONG_USER.email)
      await page.getByLabel('Password').fill('a-long-demo-phrase')
      await shot(page, `setup-long-${name}`, true)
      await page.getByRole('button', { name: 'Make the account' }).click()
      await page.getByText('The service made a mistake').waitFor()
      await shot(page, `setup-error-${name}`, true)
      refusal = { status: 403, json: { code: 'forbidden', status: 403, title: 'x', detail: 'This is not the set-up token.', request_id: 'two' } }
      await page.getByRole('button', { name: 'Make the account' }).click()
      await page.getByText('This is not the set-up token.').waitFor()
      assert.equal(await page.getByRole('alert').count(), 0, 'it is said at the token')
      await shot(page, `setup-refused-${name}`, true)
      assert.equal(await overflow(page), 0)
      check()
    })
  }
})
