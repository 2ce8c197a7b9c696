/** Where somebody is, as the top bar shows it; each screen says it. */
import { ref, watchEffect, type MaybeRefOrGetter, toValue } from 'vue'
import type { RouteLocationRaw } from 'vue-router'

export interface Crumb {
  text: string
  to?: RouteLocationRaw
}

export const crumbs = ref<Crumb[]>([])

export function useCrumbs(where: MaybeRefOrGetter<Crumb[]>): void {
  watchEffect(() => {
    crumbs.value = toValue(where)
    const last = crumbs.value[crumbs.value.length - 1]
    if (last) document.title = `${last.text} · coupon-book`
  })
}
