/** The addresses of the page, who may be there, and what is loaded for them. */
import { createRouter, createWebHistory, type RouteRecordRaw } from 'vue-router'
import { i18n, loadAdminWords } from './i18n'
import { useSession } from './session/store'

declare module 'vue-router' {
  interface RouteMeta {
    /** Open to people who are not signed in. */
    open?: boolean
    /** For administrators. */
    admin?: boolean
    /** Key of the page's title. */
    title?: string
    /** Which entry of the rail is current. */
    rail?: string
  }
}

/** Administrators' screens come together: one request, packed better than thirty small ones. */
const screen = (name: keyof typeof import('./screens/admin')) => () => import('./screens/admin').then((screens) => screens[name])

const admin: RouteRecordRaw[] = [
  { path: '', name: 'overview', component: screen('Overview'), meta: { title: 'rail.overview', rail: 'overview' } },
  { path: 'books', name: 'books', component: screen('Books'), meta: { title: 'rail.books', rail: 'books' } },
  { path: 'books/new', name: 'new-book', component: screen('NewBook'), meta: { title: 'newBook.title', rail: 'books' } },
  { path: 'books/:id', name: 'book', component: screen('Book'), props: true, meta: { title: 'rail.books', rail: 'books' } },
  { path: 'books/:id/edit', name: 'edit-book', component: screen('EditBook'), props: true, meta: { title: 'editBook.title', rail: 'books' } },
  { path: 'books/:id/import', name: 'import', component: screen('Import'), props: true, meta: { title: 'import.title', rail: 'books' } },
  { path: 'books/:id/generate', name: 'generate', component: screen('Generate'), props: true, meta: { title: 'generate.title', rail: 'books' } },
  { path: 'books/:id/coupons/:code', name: 'coupon', component: screen('Coupon'), props: true, meta: { title: 'coupon.title', rail: 'books' } },
  { path: 'pools', name: 'pools', component: screen('Pools'), meta: { title: 'rail.pools', rail: 'pools' } },
  { path: 'pools/:id', name: 'pool', component: screen('Pool'), props: true, meta: { title: 'rail.pools', rail: 'pools' } },
  { path: 'distributions', name: 'distributions', component: screen('Distributions'), meta: { title: 'rail.distributions', rail: 'distributions' } },
  { path: 'distributions/new', name: 'distribute', component: screen('Distribute'), meta: { title: 'distribute.title', rail: 'distributions' } },
  { path: 'distributions/:id', name: 'distribution', component: screen('Distribution'), props: true, meta: { title: 'rail.distributions', rail: 'distributions' } },
  { path: 'schedules', name: 'schedules', component: screen('Schedules'), meta: { title: 'rail.schedules', rail: 'schedules' } },
  { path: 'schedules/:id', name: 'schedule', component: screen('Schedule'), props: true, meta: { title: 'rail.schedules', rail: 'schedules' } },
  { path: 'jobs', name: 'jobs', component: screen('Jobs'), meta: { title: 'rail.jobs', rail: 'jobs' } },
  { path: 'jobs/:id', name: 'job', component: screen('Job'), props: true, meta: { title: 'rail.jobs', rail: 'jobs' } },
  { path: 'audit', name: 'audit', component: screen('Audit'), meta: { title: 'rail.audit', rail: 'audit' } },
  { path: 'settings', redirect: { name: 'users' } },
  { path: 'settings/users', name: 'users', component: screen('Users'), meta: { title: 'settings.users', rail: 'settings' } },
  { path: 'settings/api-keys', name: 'api-keys', component: screen('ApiKeys'), meta: { title: 'settings.keys', rail: 'settings' } },
  { path: 'settings/webhooks', name: 'webhooks', component: screen('Webhooks'), meta: { title: 'settings.webhooks', rail: 'settings' } },
]

export const router = createRouter({
  history: createWebHistory(),
  scrollBehavior: (_to, _from, saved) => saved ?? { top: 0 },
  routes: [
    { path: '/sign-in', name: 'sign-in', component: () => import('./screens/SignIn.vue'), meta: { open: true, title: 'signIn.title' } },
    { path: '/setup', name: 'setup', component: () => import('./screens/Setup.vue'), meta: { open: true, title: 'setup.title' } },
    { path: '/my', name: 'my', component: () => import('./screens/MyCoupons.vue'), meta: { title: 'mine.title' } },
    { path: '/as/:userId', name: 'as', component: () => import('./screens/MyCoupons.vue'), props: true, meta: { title: 'mine.title', admin: true } },
    { path: '/account', name: 'account', component: () => import('./screens/Account.vue'), meta: { title: 'account.title' } },
    { path: '/', component: () => import('./frame/AdminFrame.vue'), meta: { admin: true }, children: admin },
    { path: '/:rest(.*)*', name: 'nowhere', component: () => import('./screens/Nowhere.vue'), meta: { open: true, title: 'notFound.title' } },
  ],
})

router.beforeEach(async (to) => {
  const session = useSession()
  await session.start()
  if (session.trouble) return true // App shows it
  if (to.meta.open) {
    return to.name === 'sign-in' && session.user ? home(session.isAdmin, to.query.next) : true
  }
  if (!session.user) return { name: 'sign-in', query: to.fullPath === '/' ? {} : { next: to.fullPath } }
  if (to.meta.admin && !session.isAdmin) return { name: 'my' }
  if (to.meta.admin) await loadAdminWords()
  return true
})

router.afterEach((to) => {
  const title = to.meta.title ? i18n.global.t(to.meta.title) : ''
  document.title = title ? `${title} · coupon-book` : 'coupon-book'
})

/** Where somebody goes after signing in: where they were going, if that lies within. */
export function home(isAdmin: boolean, next: unknown): string {
  if (typeof next === 'string' && next.startsWith('/') && !next.startsWith('//')) return next
  return isAdmin ? '/' : '/my'
}
