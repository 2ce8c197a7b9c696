/** Who is signed in. */
import { defineStore } from 'pinia'
import { computed, ref, shallowRef } from 'vue'
import { api, body, sessionListener } from '@/api/client'
import { asProblem, type Problem } from '@/api/problem'
import { forget, hasSession, keep, refreshToken, takeOver, type User } from './tokens'

export const useSession = defineStore('session', () => {
  const user = shallowRef<User | null>(null)
  /** Whether it ended by itself, which the sign-in page then says. */
  const expired = ref(false)
  /** Why it could not be found out who is signed in. */
  const trouble = shallowRef<Problem | null>(null)
  const isAdmin = computed(() => user.value?.role === 'admin')

  sessionListener.ended = () => {
    expired.value = user.value !== null || expired.value
    user.value = null
  }
  sessionListener.renewed = (session) => {
    // Another tab has signed in as somebody else: nothing on this page is theirs.
    if (user.value && user.value.id !== session.user.id) location.reload()
    user.value = session.user
  }

  let started: Promise<void> | null = null

  /** Finds out who is signed in; once. */
  function start(): Promise<void> {
    started ??= (async () => {
      takeOver()
      addEventListener('storage', (event) => {
        if (event.key === 'couponbook.refresh' && event.newValue === null && user.value) location.reload()
      })
      if (hasSession()) {
        try {
          user.value = await body(api.GET('/v1/me'))
        } catch (error) {
          expired.value = !hasSession()
          if (hasSession()) trouble.value = asProblem(error)
        }
      }
    })()
    return started
  }

  async function signIn(email: string, password: string): Promise<User> {
    const session = await body(api.POST('/v1/auth/login', { body: { email, password } }))
    keep(session)
    expired.value = false
    user.value = session.user
    return session.user
  }

  async function signOut(): Promise<void> {
    const token = refreshToken()
    forget()
    user.value = null
    expired.value = false
    if (token) await api.POST('/v1/auth/logout', { body: { refresh_token: token } }).catch(() => {})
  }

  return { user, expired, trouble, isAdmin, start, signIn, signOut }
})
