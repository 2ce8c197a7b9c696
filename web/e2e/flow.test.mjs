// The classic demo by clicks, and what goes wrong on the way.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { after, before, describe, test } from 'node:test'
import { ADMIN, HOLDER, browser, csv, open, service, shot } from './harness.mjs'

const CODES = Array.from({ length: 200 }, (_, n) => `SPRING-${String(n).padStart(5, '0')}`)
let chrome
let running
let mia
before(async () => {
  running = await service()
  chrome = await browser()
  mia = await running.api.user(HOLDER)
})
after(async () => {
  await chrome?.close()
  await running?.stop()
})

/** Holds the button that spends. */
async function hold(page) {
  const button = page.getByRole('button', { name: 'Hold to redeem', disabled: false })
  await button.waitFor() // not before the coupon is locked
  const { x, y, width, height } = await button.boundingBox()
  await page.mouse.move(x + width / 2, y + height / 2)
  await page.mouse.down()
  await page.getByText('Redeemed', { exact: true }).waitFor()
  await page.mouse.up()
}

describe('the classic demo', () => {
  test('from signing in to a redemption in nine clicks', async () => {
    const { api } = running
    const pool = await api.send('POST', '/v1/pools', { name: 'Newsletter' })
    await api.send('POST', `/v1/pools/${pool.id}/members`, { user_ids: [mia.id] })
    const { page, click, counted, check, signIn } = await open(chrome, running)
    await signIn(ADMIN)
    await click(page.getByRole('link', { name: 'New book' }).first())
    await page.setInputFiles('input[type=file]', csv(CODES))
    await page.getByRole('region', { name: 'First rows' }).waitFor()
    assert.equal(await page.getByLabel('Name', { exact: true }).inputValue(), 'spring sale', 'the file names the book')
    await shot(page, 'new-book')
    await click(page.getByRole('button', { name: 'Make the book and import' }))
    await page.getByText('200 codes were added to spring sale. It took').waitFor()
    await shot(page, 'import')
    const bookId = /books\/([^/]+)/.exec(page.url())[1]
    await click(page.getByRole('link', { name: 'Distribute these' }))
    await click(page.getByRole('button', { name: 'Assign one code to one person' }))
    await page.getByText('completed', { exact: true }).waitFor()
    console.log(`# clicks from signing in to distributed: ${counted.clicks}`)
    assert.ok(counted.clicks <= 6, `${counted.clicks} clicks to distributed`)
    await click(page.getByRole('link', { name: 'View as user' }).first())
    await page.getByText('You act for Mia Holder').waitFor()
    await click(page.getByRole('button', { name: /^Use now/ }))
    await page.getByRole('timer').waitFor()
    counted.clicks++
    await hold(page)
    assert.ok(counted.clicks <= 9, `${counted.clicks} clicks to redeemed`)
    await page.getByRole('button', { name: 'Done' }).click()
    const stats = await api.send('GET', `/v1/books/${bookId}/stats`)
    assert.deepEqual([stats.redeemed, stats.total], [1, 200])
    console.log(`# clicks from signing in to redeemed: ${counted.clicks}`)
    check()
  })

  test('codes are made by a pattern, with advice while one types, and leave as a file', async () => {
    const { api } = running
    const book = await api.book({ name: 'Made here' })
    const { page, check, signIn, click } = await open(chrome, running, { allow: [/422/] })
    await signIn(ADMIN)
    await page.goto(`/books/${book.id}/generate`)
    const make = page.getByRole('button', { name: /^Generate [\d,]+ codes$/ })
    await page.getByText('Odds of a hit').waitFor()
    await page.getByLabel('How many').fill('500')
    await page.getByLabel('Pattern', { exact: true }).fill('CB-##')
    await page.getByText('they could be guessed').waitFor()
    assert.ok(await make.isDisabled(), 'codes that can be guessed are not made')
    await shot(page, 'generate-small')
    await page.getByLabel('Pattern', { exact: true }).fill('CB-****-****\\')
    await page.locator('[aria-invalid=true]').waitFor()
    await page.getByLabel('Pattern', { exact: true }).fill('CB-****-****')
    await page.locator('code', { hasText: /^CB-[2-9A-Z]{4}-[2-9A-Z]{4,5}$/ }).first().waitFor()
    await shot(page, 'generate')
    await click(make)
    await page.getByText('succeeded', { exact: true }).first().waitFor()
    await shot(page, 'generated')
    assert.equal((await api.send('GET', `/v1/books/${book.id}/stats`)).total, 500)
    await click(page.getByRole('main').getByRole('link', { name: 'Book', exact: true }))
    await click(page.getByRole('button', { name: 'Export' }))
    await shot(page, 'exporting')
    await click(page.getByRole('link', { name: 'Export' }).first())
    const [file] = await Promise.all([page.waitForEvent('download'), click(page.getByRole('button', { name: 'Download', exact: true }))])
    await shot(page, 'exported')
    const rows = readFileSync(await file.path(), 'utf8').trimEnd().split('\r\n')
    assert.match(file.suggestedFilename(), /\.csv$/)
    assert.match(rows[0], /^code,state,/)
    assert.equal(new Set(rows.slice(1).map((row) => row.split(',')[0]).filter((code) => /^CB-/.test(code))).size, 500)
    check()
  })

  test('a holder uses a coupon at 360 pixels by keyboard alone', async () => {
    const { api } = running
    const book = await api.book({ name: 'Ten coffees', redemptions_per_coupon: 2 }, ['COFFEE-1'])
    await api.assign(book.id, mia.id)
    const { page, check } = await open(chrome, running, { width: 360, height: 640, dark: true })
    await page.goto('/')
    await page.getByLabel('E-mail').waitFor()
    await page.keyboard.type(HOLDER.email) // the field has the focus
    await page.keyboard.press('Tab')
    await page.keyboard.type(HOLDER.password)
    await page.keyboard.press('Enter')
    const use = page.getByRole('button', { name: /^Use now: Ten coffees/ })
    await use.waitFor()
    await shot(page, 'my-coupons-dark-360')
    for (let n = 0; n < 30 && !(await use.evaluate((button) => button === document.activeElement)); n++) await page.keyboard.press('Tab')
    await page.keyboard.press('Enter')
    const spend = page.getByRole('button', { name: 'Hold to redeem' })
    await page.getByRole('timer').filter({ hasText: /\d/ }).waitFor() // it is locked, and the clock runs
    await shot(page, 'use-dark-360')
    for (let n = 0; n < 10 && !(await spend.evaluate((button) => button === document.activeElement)); n++) await page.keyboard.press('Tab')
    await page.keyboard.press('Enter')
    await page.keyboard.press('Enter') // the confirmation has the focus
    await page.getByText('One use is left.').waitFor()
    await page.keyboard.press('Enter')
    await page.getByText('1 of 2 uses left').waitFor()
    check()
  })
})

describe('what goes wrong', () => {
  test('a lock that lapses says that nothing was used, and one that is left is given back', async () => {
    const { api } = running
    const book = await api.book({ name: 'Short hold', lock_seconds: 5 }, ['SHORT-1'])
    await api.assign(book.id, mia.id)
    const { page, check, signIn, click } = await open(chrome, running, { width: 390, height: 760 })
    await signIn(HOLDER)
    await click(page.getByRole('button', { name: /^Use now: Short hold/ }))
    await page.getByText('The time is over').waitFor()
    await page.getByText('Nothing was used.').waitFor()
    await shot(page, 'lapsed')
    await click(page.getByRole('button', { name: 'Open it again' }))
    await click(page.getByRole('button', { name: 'Not now' }))
    await page.getByRole('button', { name: /^Use now: Short hold/ }).waitFor()
    const coupon = await api.send('GET', `/v1/coupons/SHORT-1?book_id=${book.id}`)
    assert.deepEqual([coupon.state, coupon.redemptions_used], ['assigned', 0])
    check()
  })

  test('a countdown is right though the clock of the phone is an hour wrong', async () => {
    const { api } = running
    const book = await api.book({ name: 'Wrong clock' }, ['CLOCK-1'])
    await api.assign(book.id, mia.id)
    const { page, context, check, signIn, click } = await open(chrome, running)
    await context.addInitScript(() => {
      const now = Date.now
      Date.now = () => now() + 3_600_000
    })
    await signIn(HOLDER)
    await click(page.getByRole('button', { name: /^Use now: Wrong clock/ }))
    await page.getByRole('timer').filter({ hasText: /[45]:\d\d/ }).waitFor()
    const shown = async () => { const [minutes, seconds] = (await page.getByRole('timer').textContent()).split(':').map(Number); return minutes * 60 + seconds }
    const { locked_until } = await api.send('GET', `/v1/coupons/CLOCK-1?book_id=${book.id}`)
    const real = (Date.parse(locked_until) - Date.now()) / 1_000
    assert.ok(Math.abs((await shown()) - real) <= 1.3, `shows ${await shown()}, real ${real}`)
    check()
  })

  test('an upload whose network is lost is sent again by a press', async () => {
    const { api } = running
    const book = await api.book({ name: 'Bad network' })
    const { page, context, check, signIn, click } = await open(chrome, running, { allow: [/ERR_INTERNET_DISCONNECTED/] })
    await signIn(ADMIN)
    await page.goto(`/books/${book.id}/import`)
    await page.setInputFiles('input[type=file]', csv(CODES))
    await page.getByRole('region', { name: 'First rows' }).waitFor()
    await context.setOffline(true)
    await click(page.getByRole('button', { name: 'Import', exact: true }))
    await page.getByText('The file did not arrive').waitFor()
    await page.getByText('No connection to the service').waitFor()
    await shot(page, 'offline')
    await context.setOffline(false)
    await click(page.getByRole('button', { name: 'Send it again' }))
    await page.getByText('200 codes were added to Bad network.').waitFor()
    assert.equal((await api.send('GET', `/v1/books/${book.id}/stats`)).total, 200)
    check()
  })

  test('bad lines are counted, shown and can be downloaded; a check writes nothing', async () => {
    const { api } = running
    const book = await api.book({ name: 'Bad lines' })
    const { page, check, signIn, click } = await open(chrome, running)
    await signIn(ADMIN)
    await page.goto(`/books/${book.id}/import`)
    await page.setInputFiles('input[type=file]', csv(['A-1', 'A-2', 'a 1', 'A-\u2603', 'A-3']))
    await click(page.getByRole('button', { name: 'Check only' }))
    await page.getByText('3 of 5 lines are good.').waitFor()
    assert.equal((await api.send('GET', `/v1/books/${book.id}/stats`)).total, 0)
    await shot(page, 'check')
    await click(page.getByRole('button', { name: 'Import 3 codes' }))
    await page.getByText('3 codes were added to Bad lines.').waitFor()
    const [file] = await Promise.all([page.waitForEvent('download'), click(page.getByRole('button', { name: 'Download the report' }))])
    assert.match(file.suggestedFilename(), /\.csv$/)
    check()
  })

  test('a change that somebody else made meanwhile is not overwritten', async () => {
    const { api } = running
    const book = await api.book({ name: 'Contested' })
    const { page, check, signIn, click } = await open(chrome, running, { allow: [/412/] })
    await signIn(ADMIN)
    await page.goto(`/books/${book.id}/edit`)
    await page.getByLabel('Coupons per user').fill('3')
    await api.send('PATCH', `/v1/books/${book.id}`, { name: 'Contested, renamed' })
    await click(page.getByRole('button', { name: 'Save' }))
    await page.getByText('Somebody else changed it meanwhile').waitFor()
    await click(page.getByRole('button', { name: 'Read the newest values' }))
    await page.waitForFunction(() => [...document.querySelectorAll('input')].some((input) => input.value === 'Contested, renamed'))
    check()
  })

  test('a session that has ended leads back to where one was', async () => {
    const { page, check, signIn } = await open(chrome, running, { allow: [/401/] })
    await signIn(ADMIN)
    await page.goto('/jobs?q=state%3Afailed')
    await page.getByRole('heading', { name: 'Jobs' }).waitFor()
    const token = await page.evaluate(() => localStorage.getItem('couponbook.refresh'))
    await fetch(`${running.url}/v1/auth/logout`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ refresh_token: token }) })
    await page.route('**/v1/**', (route) => (route.request().url().includes('/auth/') ? route.continue() : route.fulfill({ status: 401, contentType: 'application/problem+json', body: '{"code":"unauthenticated","status":401}' })), { times: 20 })
    await page.getByText('Your session has ended.').waitFor()
    await page.unroute('**/v1/**')
    await page.getByLabel('E-mail').fill(ADMIN.email)
    await page.getByLabel('Password').fill(ADMIN.password)
    await page.getByRole('button', { name: 'Sign in' }).click()
    await page.waitForURL('**/jobs?q=state**')
    check()
  })

  test('a reload in the middle of a reload keeps the session', async () => {
    const { page, check, signIn } = await open(chrome, running)
    await signIn(ADMIN)
    for (let n = 0; n < 4; n++) await page.evaluate(() => location.reload()).catch(() => {}) // the page may be gone already
    await page.getByRole('heading', { name: 'Overview' }).waitFor()
    check()
  })
})
